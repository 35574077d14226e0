"""The test sets of `public_sets.yaml`: protocols of papers, published figures, kinds of distortion."""

import re
from pathlib import Path
from typing import NamedTuple

import yaml

_KNOWN = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
_CSIQ = re.compile(r"[^./]+\.([A-Za-z0-9]+)\.\d\.png$")

WHOLE = "all"
"""Instead of a split: every image of the set."""


class Preset(NamedTuple):
    """
    The evaluation protocol of a paper.

    Args:
        name (`str`):
            Its name.
        splits (`dict[str, str]`), sizes (`dict[str, int]`):
            By set: the evaluated split, or `WHOLE`, and its number of images.
        target (`str`):
            Labels of the correlations, `mos` or `mos_raw`.
        plcc (`str`):
            The PLCC that the paper prints, `plcc` (raw) or `plcc_fitted`.
        failures (`str`):
            How the protocol treats answers without a score.
        source (`str`):
            Paper and code.
    """

    name: str
    splits: dict[str, str]
    sizes: dict[str, int]
    target: str
    plcc: str
    failures: str
    source: str


class PublishedRow(NamedTuple):
    """What a paper printed for one model and set; a quotation, not a measurement of ours."""

    model: str
    plcc: float | None
    srcc: float
    source: str


def _preset(name: str, sets: dict[str, tuple[str, int]], **others: str) -> Preset:
    splits = {key: split for key, (split, _) in sets.items()}
    sizes = {key: size for key, (_, size) in sets.items()}
    return Preset(name=name, splits=splits, sizes=sizes, **others)


PRESETS = {name: _preset(name, **content) for name, content in _KNOWN["presets"].items()}


def get_preset(name: str) -> Preset:
    """Return the protocol of this name, a key of `PRESETS`; raise `ValueError` if there is none."""
    if name not in PRESETS:
        raise ValueError(f"Unknown preset {name!r}; choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def departures(preset: Preset, dataset: str, images: int) -> list[str]:
    """Describe how a measured set, given by name and number of images, differs from the protocol's."""
    if dataset not in preset.splits:
        known = ", ".join(sorted(preset.splits))
        return [f"{preset.name} has no set {dataset!r} (it has {known}): only its labels and its PLCC are used."]
    expected = preset.sizes[dataset]
    if images != expected:
        return [f"{preset.name} measures {dataset} on {expected} images, not {images}: this is a different test set."]
    return []


def published_rows(dataset: str) -> list[PublishedRow]:
    """Return the published rows of models that were trained on KonIQ-10k alone; empty for an unknown set."""
    rows = [row for row in _KNOWN["published"] if dataset in row["figures"]]
    figures = [(row, *row["figures"][dataset]) for row in rows]
    return [PublishedRow(row["model"], plcc, srcc, row["source"]) for row, plcc, srcc in figures]


def distortion_of(dataset: str, image_id: str) -> str:
    """
    Read the kind of distortion from an image's file name, for KADID-10k, TID2013, CSIQ and PIPAL.

    Args:
        dataset (`str`):
            Name of the set.
        image_id (`str`):
            File name, optionally with folders.

    Returns:
        `str`: The kind, `type NN` if the set's number has no name here, or `""` for another set or name.
    """
    name = image_id.replace("\\", "/").rsplit("/", 1)[-1]
    if dataset == "csiq":
        match = _CSIQ.match(name)
        return match.group(1) if match else ""
    known = _KNOWN["distortions"].get(dataset)
    match = known and re.match(known["pattern"], name, re.IGNORECASE)
    if not match:
        return ""
    number, kinds = int(match.group(1)), known["kinds"]
    return kinds[number - 1] if 1 <= number <= len(kinds) else f"type {number:02}"
