"""
The synthetic image quality set: procedural pictures, degraded with known severity, laid out on disk like KonIQ-10k.

It lets everything run without a download, and its truth is known: quality falls linearly with severity, and the mean
opinion scores add nothing but the noise of the simulated raters.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from ..data.image_distortions import (
    banding,
    contrast,
    darken,
    gaussian_blur,
    gaussian_noise,
    jpeg,
    motion_blur,
    pixelate,
)
from ..io.atomic import write_json
from ..io.outputs import is_taken
from ..io.publication import publish_folder
from .contents import draw_content

SEEN_KINDS = ("gaussian_noise", "gaussian_blur", "jpeg", "darken")
"""Kinds that the demo policy was trained on: the paper's four."""

UNSEEN_KINDS = ("motion_blur", "pixelate", "contrast", "banding")
"""Kinds for a second held-out set: in no pre-training, no supervised answer, no training image, no degraded view."""

CONTENT_SEEDS = {
    "training": range(10_000_000),
    "validation": range(10_000_000, 20_000_000),
    "test": range(20_000_000, 30_000_000),
    "pretraining": range(30_000_000, 40_000_000),
}
"""Content seeds by use. They are disjoint, so that no picture serves two uses."""

IMAGE_FOLDER = "512x384"
LABEL_FILE = "koniq10k_distributions_sets.csv"
TRUTH_FILE = "synthetic_truth.csv"
MANIFEST_FILE = "synthetic_manifest.json"

_VERSION = 1  # of the pictures and labels that a seed gives: raise it when they change
_SEEDS_PER_SET = 100_000
_SETS_PER_USE = 100
_PRISTINE_SHARE = 0.06
_RATER_STD = 0.6  # in points of the 1..5 scale

# Parameters are spaced so that equal severities look about equally bad: noise, blur and pixel size count on a linear
# scale; compression, brightness, contrast and grey levels count as ratios. Severity 0 changes nothing.
_DISTORTIONS: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "gaussian_noise": lambda array, t, rng: gaussian_noise(array, 60 * t**1.2, rng),
    "gaussian_blur": lambda array, t, rng: gaussian_blur(array, 3.2 * t),
    "jpeg": lambda array, t, rng: jpeg(array, 90 * (4 / 90) ** t),
    "darken": lambda array, t, rng: darken(array, 0.12**t),
    "motion_blur": lambda array, t, rng: motion_blur(array, 1 + 14 * t, rng.uniform(0, 180)),
    "pixelate": lambda array, t, rng: pixelate(array, 1 + 9 * t),
    "contrast": lambda array, t, rng: contrast(array, 0.1**t),
    "banding": lambda array, t, rng: banding(array, 128 * (2 / 128) ** t),
}


class SyntheticSample(NamedTuple):
    """
    One degraded picture and the truth about it.

    Args:
        picture (`np.ndarray` of shape `(84, 112, 3)`):
            uint8 RGB picture.
        kind (`str`):
            Kind of distortion; of a pristine picture the kind that was not applied.
        severity (`float`):
            In [0, 1]; 0 is pristine.
        quality (`float`):
            True quality in [1, 5].
    """

    picture: np.ndarray
    kind: str
    severity: float
    quality: float


def content_seed(use: str, seed: int, index: int) -> int:
    """
    Return the seed of one picture content.

    Args:
        use (`str`):
            Key of `CONTENT_SEEDS`.
        seed (`int`):
            Seed of the set, in [0, 100).
        index (`int`):
            Number of the picture within its use, in [0, 100,000).

    Returns:
        `int`: Distinct for every triple of arguments.

    Raises:
        `ValueError`: The seed or the index is out of range.
    """
    if not 0 <= seed < _SETS_PER_USE:
        raise ValueError(f"The seed of a synthetic set lies in [0, {_SETS_PER_USE}), got {seed}.")
    if not 0 <= index < _SEEDS_PER_SET:
        raise ValueError(f"A synthetic set has at most {_SEEDS_PER_SET} pictures of a use, got index {index}.")
    return CONTENT_SEEDS[use][seed * _SEEDS_PER_SET + index]


def true_quality(severity: float) -> float:
    """Quality in [1, 5] of a picture of a severity in [0, 1]: the same line for all kinds."""
    return 5.0 - 4.0 * severity


def distort(picture: np.ndarray, kind: str, severity: float, rng: np.random.Generator) -> np.ndarray:
    """
    Degrade a uint8 RGB picture of shape (H, W, 3) by a kind of distortion, with a severity in [0, 1]; 0 is a copy.

    Raises `ValueError` for an unknown kind or a severity out of range.
    """
    if kind not in _DISTORTIONS:
        raise ValueError(f"Unknown kind {kind!r}; the known kinds are {', '.join(_DISTORTIONS)}.")
    if not 0 <= severity <= 1:
        raise ValueError(f"A severity lies in [0, 1], got {severity}.")
    return picture.copy() if severity == 0 else _DISTORTIONS[kind](picture, severity, rng)


def draw_sample(seed: int, kinds: Sequence[str] = SEEN_KINDS) -> SyntheticSample:
    """
    Draw the picture of one content seed, with a random kind and severity of distortion.

    The severity is uniform in [0, 1], except for a few pictures that stay pristine.

    Args:
        seed (`int`):
            Content seed, see [`content_seed`].
        kinds (`Sequence[str]`, *optional*, defaults to `SEEN_KINDS`):
            Kinds to draw from.

    Returns:
        [`SyntheticSample`]
    """
    rng = np.random.default_rng([seed, 1])  # not the content's own stream
    kind = kinds[int(rng.integers(len(kinds)))]
    severity = 0.0 if rng.random() < _PRISTINE_SHARE else float(rng.random())
    return SyntheticSample(distort(draw_content(seed), kind, severity, rng), kind, severity, true_quality(severity))


def simulate_ratings(quality: float, rng: np.random.Generator) -> np.ndarray:
    """Counts (5,) of the ratings 1 to 5 by 90 to 110 raters, who see the quality with a standard deviation of 0.6."""
    opinions = quality + _RATER_STD * rng.standard_normal(int(rng.integers(90, 111)))
    categories = np.clip(np.rint(opinions), 1, 5).astype(int)
    return np.bincount(categories, minlength=6)[1:]


def label_row(image_name: str, counts: np.ndarray, split: str) -> dict[str, str | int]:
    """A row of KonIQ-10k's label file: shares c1 to c5, MOS in [0, 100] and the ratings' sample standard deviation."""
    total = int(counts.sum())
    ratings = np.repeat(np.arange(1, 6), counts)
    fractions = {f"c{category}": f"{counts[category - 1] / total:.12f}" for category in range(1, 6)}
    mos = 25 * (ratings.mean() - 1)
    return {
        "image_name": image_name,
        **fractions,
        "c_total": total,
        "MOS": f"{mos:.10f}",
        "SD": f"{ratings.std(ddof=1):.12f}",
        "set": split,
    }


def write_synthetic_koniq(
    root: str | Path,
    *,
    train: int = 1200,
    validation: int = 300,
    test: int = 520,
    seed: int = 0,
    kinds: Sequence[str] = SEEN_KINDS,
    progress: bool = True,
) -> Path:
    """
    Write the set in KonIQ-10k's layout: `ROOT/512x384/*.png` and `ROOT/koniq10k_distributions_sets.csv`.

    A table of the true kind, severity and quality of each image, and a manifest, are added. The folder appears
    complete or not at all; a complete set of the same settings is kept.

    Args:
        root (`str` or `Path`):
            Folder to write: missing, empty, or with the same set.
        train (`int`, *optional*, defaults to `1200`), validation (`int`, *optional*, defaults to `300`),
        test (`int`, *optional*, defaults to `520`):
            Number of images of each split.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the set, in [0, 100).
        kinds (`Sequence[str]`, *optional*, defaults to `SEEN_KINDS`):
            Kinds of distortion.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `Path`: `root`.

    Raises:
        `FileExistsError`: The folder holds something else, or a damaged set.
        `ValueError`: A setting is out of range.
    """
    root = Path(root)
    sizes = {"training": train, "validation": validation, "test": test}
    settings = {"version": _VERSION, "seed": seed, "kinds": list(kinds), "sizes": sizes}
    _check_settings(sizes, seed, kinds)
    if is_taken(root):
        _check_existing(root, settings)
        return root
    with publish_folder(root) as staging:
        _write_set(staging, sizes, seed, kinds, progress)
        write_json(staging / MANIFEST_FILE, {**settings, "sha256": _digest(staging)})
    return root


def _check_settings(sizes: dict[str, int], seed: int, kinds: Sequence[str]) -> None:
    unknown = [kind for kind in kinds if kind not in _DISTORTIONS]
    if isinstance(kinds, str) or not kinds or unknown:
        raise ValueError(f"`kinds` must be a list of known kinds ({', '.join(_DISTORTIONS)}), got {kinds!r}.")
    if min(sizes.values()) < 0 or sum(sizes.values()) == 0:
        raise ValueError(f"The sizes of a set are at least 0 and not all 0, got {sizes}.")
    content_seed("training", seed, max(sizes.values()) - 1)


def _check_existing(root: Path, settings: dict) -> None:
    manifest_path = root / MANIFEST_FILE
    if not manifest_path.is_file():
        raise FileExistsError(f"{root} is not a synthetic set: name another folder.")
    manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    differing = [key for key, value in settings.items() if manifest.get(key) != value]
    if differing:
        raise FileExistsError(f"{root} holds a synthetic set with other {', '.join(differing)}: name another folder.")
    if _digest(root) != manifest.get("sha256"):
        raise FileExistsError(f"{root} holds a damaged synthetic set: remove it or name another folder.")


def _write_set(folder: Path, sizes: dict[str, int], seed: int, kinds: Sequence[str], progress: bool) -> None:
    (folder / IMAGE_FOLDER).mkdir()
    labels, truths = [], []
    seeds = [(split, content_seed(split, seed, index)) for split, size in sizes.items() for index in range(size)]
    for split, content in tqdm(seeds, desc="Drawing the synthetic set", unit="image", disable=not progress):
        sample = draw_sample(content, kinds)
        name = f"{content:08d}.png"
        Image.fromarray(sample.picture).save(folder / IMAGE_FOLDER / name, compress_level=1)
        counts = simulate_ratings(sample.quality, np.random.default_rng([content, 2]))
        labels.append(label_row(name, counts, split))
        truth = {"kind": sample.kind, "severity": f"{sample.severity:.6f}", "quality": f"{sample.quality:.6f}"}
        truths.append({"image_name": name, **truth})
    for name, rows in ((LABEL_FILE, labels), (TRUTH_FILE, truths)):
        pd.DataFrame(rows).to_csv(folder / name, index=False, lineterminator="\n")


def _digest(root: Path) -> str:
    """SHA-256 over the names and bytes of the label files and all images."""
    digest = hashlib.sha256()
    for path in [root / LABEL_FILE, root / TRUTH_FILE, *sorted((root / IMAGE_FOLDER).glob("*"))]:
        if path.is_file():
            data = path.read_bytes()
            digest.update(f"{path.name}:{len(data)}:".encode())
            digest.update(data)
    return digest.hexdigest()
