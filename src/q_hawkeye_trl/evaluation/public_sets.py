"""
What is known about the public test sets: the papers' protocols, published figures, kinds of distortion.

Figures of different protocols are not comparable. Published figures are quotations, not measurements of ours.
"""

import re
from typing import NamedTuple

WHOLE = "all"
"""In place of a split: every image of the set."""


class Preset(NamedTuple):
    """
    The evaluation protocol of a paper.

    Args:
        name (`str`):
            Its name.
        splits (`dict[str, str]`):
            By set: the split that is measured, or `WHOLE`.
        sizes (`dict[str, int]`):
            By set: the number of images in that split.
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


# Sizes of the test lists in the metas of DeQA-Score, some of which are whole sets.
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
    """Return the protocol of this name, a key of `PRESETS`; raise `ValueError` if there is none."""
    if name not in PRESETS:
        raise ValueError(f"Unknown preset {name!r}; choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def departures(preset: Preset, dataset: str, images: int) -> list[str]:
    """Say in sentences how a measured set, of this name and number of images, differs from the protocol's."""
    if dataset not in preset.splits:
        known = ", ".join(sorted(preset.splits))
        return [f"{preset.name} has no set {dataset!r} (it has {known}): only its labels and its PLCC are used."]
    expected = preset.sizes.get(dataset, images)
    if images != expected:
        return [f"{preset.name} measures {dataset} on {expected} images, these are {images}: not the same test set."]
    return []


class PublishedRow(NamedTuple):
    """What a paper printed for one model and set; `plcc`, by the paper's own protocol, is `None` where not known."""

    model: str
    plcc: float | None
    srcc: float
    source: str


SETS = ("koniq10k", "spaq", "kadid10k", "pipal", "livec", "agiqa3k", "csiq")

_DEQA = "DeQA-Score, arXiv 2501.11561"
_Q_INSIGHT = "Q-Insight, arXiv 2503.22679"
_RALI = "quoted by RALI, arXiv 2510.11369"
_Q_HAWKEYE = "Q-Hawkeye, arXiv 2601.22920"

# PLCC/SRCC, all trained on KonIQ-10k alone. The columns are SETS.
_ROWS = {
    ("Q-Align", _DEQA): ".941/.940 .886/.887 .674/.684 .403/.419 .853/.860 .772/.735 .785/.737",
    ("DeQA-Score", _DEQA): ".953/.941 .895/.896 .694/.687 .472/.478 .892/.879 .809/.729 .787/.744",
    ("Q-Insight", _Q_INSIGHT): ".933/.916 .907/.905 .742/.736 .486/.474 .893/.865 .811/.764 .870/.824",
    ("VisualQuality-R1", _RALI): ".923/.908 .891/.892 .712/.711 .441/.438 .874/.849 .822/.767 .712/.662",
    ("Q-Hawkeye", _Q_HAWKEYE): "- -/.903 - - - -/.752 -/.806",
}


def published_rows(dataset: str) -> list[PublishedRow]:
    """Return the published rows of models that were trained on KonIQ-10k alone; empty for an unknown set."""
    if dataset not in SETS:
        return []
    rows = []
    for (model, source), figures in _ROWS.items():
        cell = figures.split()[SETS.index(dataset)]
        if cell != "-":
            linear, rank = cell.split("/")
            rows.append(PublishedRow(model, None if linear == "-" else float(linear), float(rank), source))
    return rows


# the number in a file name, and what the numbers from 1 on mean
_NUMBERED = {
    "kadid10k": (
        re.compile(r"I\d+_(\d+)_\d+", re.IGNORECASE),
        (
            "Gaussian blur; lens blur; motion blur; color diffusion; color shift; color quantization; color "
            "saturation 1; color saturation 2; JPEG 2000; JPEG; white noise; white noise in color; impulse noise; "
            "multiplicative noise; denoise; brighten; darken; mean shift; jitter; non-eccentricity patch; "
            "pixelate; quantization; color block; high sharpen; contrast change"
        ),
    ),
    "tid2013": (
        re.compile(r"I\d+_(\d+)_\d+", re.IGNORECASE),
        (
            "additive Gaussian noise; noise in color; spatially correlated noise; masked noise; high frequency "
            "noise; impulse noise; quantization noise; Gaussian blur; denoising; JPEG; JPEG 2000; JPEG "
            "transmission errors; JPEG 2000 transmission errors; non-eccentricity pattern noise; block-wise "
            "distortions; mean shift; contrast change; color saturation; multiplicative Gaussian noise; comfort "
            "noise; lossy compression of noise; color quantization with dither; chromatic aberrations; sparse "
            "sampling"
        ),
    ),
    "pipal": (re.compile(r"A\d+_(\d+)_\d+", re.IGNORECASE), ""),
}
_CSIQ = re.compile(r"[^./]+\.([A-Za-z0-9]+)\.\d\.png$")


def distortion_of(dataset: str, image_id: str) -> str:
    """
    Read the kind of distortion from an image's file name, for KADID-10k, TID2013, CSIQ and PIPAL.

    Args:
        dataset (`str`):
            Name of the set.
        image_id (`str`):
            File name, optionally with folders.

    Returns:
        `str`: The kind, `type NN` where the set's numbers have no names here, or `""` for another set or name.

    Source: KADID-10k (Lin et al., 2019), TID2013 (Ponomarenko et al., 2015): their lists of distortions.
    """
    name = image_id.replace("\\", "/").rsplit("/", 1)[-1]
    if dataset == "csiq":
        match = _CSIQ.match(name)
        return match.group(1) if match else ""
    if dataset not in _NUMBERED:
        return ""
    pattern, kinds = _NUMBERED[dataset]
    match = pattern.match(name)
    if match is None:
        return ""
    number, names = int(match.group(1)), kinds.split("; ")
    return names[number - 1] if kinds and 1 <= number <= len(names) else f"type {number:02}"
