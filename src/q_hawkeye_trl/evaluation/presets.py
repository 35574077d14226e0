"""Protocols of the papers, by name: which split, which labels, which PLCC. Figures of different ones don't compare."""

from typing import NamedTuple

WHOLE = "all"
"""In place of a split: every image of the set."""


class Preset(NamedTuple):
    """
    One protocol.

    Args:
        name (`str`):
            Its name.
        splits (`dict[str, str]`):
            By set: the split that is measured, or `WHOLE`.
        sizes (`dict[str, int]`):
            By set: images of that split, to tell another list of images by.
        target (`str`):
            Labels that the correlations are taken with, `mos` or `mos_raw`.
        plcc (`str`):
            The PLCC that the paper prints: `plcc` (raw) or `plcc_fitted`.
        failures (`str`):
            What the protocol does with answers that can't be read.
        source (`str`):
            Where it stands.
    """

    name: str
    splits: dict[str, str]
    sizes: dict[str, int]
    target: str
    plcc: str
    failures: str
    source: str


# Both protocols stand on the metas of DeQA-Score, some of which are whole sets.
_DEQA_SIZES = {
    "koniq10k": 2010,
    "spaq": 2224,
    "kadid10k": 2000,
    "pipal": 4640,
    "livec": 1162,
    "agiqa3k": 2982,
    "tid2013": 3000,
    "csiq": 866,
}
_WHOLE_SIZES = {"spaq": 11125, "kadid10k": 10125, "livec": 1162, "agiqa3k": 2982, "tid2013": 3000, "csiq": 866}

PRESETS = {
    "deqa": Preset(
        name="deqa",
        splits=dict.fromkeys(_DEQA_SIZES, "test"),
        sizes=_DEQA_SIZES,
        target="mos_raw",
        plcc="plcc_fitted",
        failures="none: the score is an expectation over five words",
        source="DeQA-Score, arXiv 2501.11561: test lists of its metas, gt_score, src/evaluate/cal_plcc_srcc.py",
    ),
    "pyiqa": Preset(
        name="pyiqa",
        splits={"koniq10k": "test", **dict.fromkeys(("livec", "spaq", "tid2013", "kadid10k", "csiq"), WHOLE)},
        sizes={"koniq10k": 2015, **{name: size for name, size in _WHOLE_SIZES.items() if name != "agiqa3k"}},
        target="mos_raw",
        plcc="plcc",
        failures="none: the metrics always give a number",
        source="IQA-PyTorch, docs/benchmark.rst: official split of KonIQ-10k, whole sets elsewhere, no correction",
    ),
    "mr-iqa": Preset(
        name="mr-iqa",
        splits={"koniq10k": "test", "pipal": "test", **dict.fromkeys(_WHOLE_SIZES, WHOLE)},
        sizes={"koniq10k": 2010, "pipal": 4640, **_WHOLE_SIZES},
        target="mos",
        plcc="plcc",
        failures="left out",
        source="MR-IQA, arXiv 2606.29760: manifests of its repository, greedy answers, src/mr_iqa/evaluate_mr_iqa.py",
    ),
}


def get_preset(name: str) -> Preset:
    """
    Finds a protocol.

    Args:
        name (`str`):
            Key of `PRESETS`.

    Returns:
        [`Preset`]

    Raises:
        `ValueError`: There is none of this name.
    """
    if name not in PRESETS:
        raise ValueError(f"Unknown preset {name!r}; choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def departures(preset: Preset, dataset: str, images: int) -> list[str]:
    """
    Says in what a measured set is not that of the protocol.

    Args:
        preset ([`Preset`]):
            The protocol.
        dataset (`str`):
            Name of the set, such as `koniq10k`.
        images (`int`):
            Images measured.

    Returns:
        `list[str]`: Sentences, empty where nothing is known against it.
    """
    if dataset not in preset.splits:
        known = ", ".join(sorted(preset.splits))
        return [f"{preset.name} has no set {dataset!r} (it has {known}): only its labels and its PLCC are used."]
    expected = preset.sizes.get(dataset, images)
    if images != expected:
        return [f"{preset.name} measures {dataset} on {expected} images, these are {images}: not the same test set."]
    return []
