"""
Degraded views of images: kinds by name (`gaussian_noise`, `motion_blur@4`), five severities, seeds from the pixels.

Nothing here touches a global random state: a view depends on the seed, the decoded pixels and the epoch alone, so that
every rank and every restart draws the same one.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .distortions import (
    banding,
    brighten,
    contrast,
    darken,
    defocus_blur,
    gaussian_blur,
    gaussian_noise,
    jpeg,
    jpeg2000,
    motion_blur,
    pixelate,
    saturation,
)
from .images import to_rgb

_FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "gaussian_noise": gaussian_noise,
    "gaussian_blur": gaussian_blur,
    "jpeg": jpeg,
    "darken": darken,
    "motion_blur": motion_blur,
    "defocus_blur": defocus_blur,
    "brighten": brighten,
    "contrast": contrast,
    "saturation": saturation,
    "pixelate": pixelate,
    "jpeg2000": jpeg2000,
    "banding": banding,
}

DEGRADATIONS = tuple(_FUNCTIONS)
"""The known kinds."""

RELEASE_PRESETS: dict[str, dict[str, float]] = {
    "gaussian_noise": {"std": 45.0},
    "gaussian_blur": {"radius": 2.0},
    "jpeg": {"quality": 5, "repeats": 3},
    "darken": {"factor": 0.6},
}
"""
The released Q-Hawkeye code's four kinds with its strengths; radii in pixels, whatever the image's size. Its JPEG runs
three times over, of which the second and third hardly change a pixel at this quality.
"""

RELEASE_STRONG_PRESETS: dict[str, dict[str, float]] = {
    "gaussian_noise": {"std": 65.0},
    "gaussian_blur": {"radius": 4.0},
    "jpeg": {"quality": 5, "repeats": 3},
    "darken": {"factor": 0.5},
}
"""What the release applies to a pair whose first degradation came out too mild."""

SEVERITIES = {
    "gaussian_noise": ("std", (8.0, 15.0, 28.0, 50.0, 85.0)),
    "jpeg": ("quality", (40, 25, 14, 8, 4)),
    "darken": ("factor", (0.8, 0.65, 0.5, 0.35, 0.2)),
    "brighten": ("factor", (1.2, 1.4, 1.7, 2.1, 2.6)),
    "contrast": ("factor", (0.8, 0.6, 0.45, 0.3, 0.15)),
    "saturation": ("factor", (0.75, 0.5, 0.3, 0.15, 0.0)),
    "jpeg2000": ("ratio", (16, 32, 60, 110, 200)),
    "banding": ("levels", (24, 14, 8, 5, 3)),
}
"""The parameter of each kind without a spatial extent, and its value at severity 1 to 5."""

SPATIAL_SEVERITIES = {
    "gaussian_blur": ("radius", 0.3, (0.0015, 0.003, 0.006, 0.012, 0.024)),
    "defocus_blur": ("radius", 0.5, (0.002, 0.004, 0.008, 0.016, 0.032)),
    "motion_blur": ("length", 1.0, (0.006, 0.012, 0.024, 0.048, 0.096)),
    "pixelate": ("block", 1.0, (0.003, 0.006, 0.012, 0.024, 0.048)),
}
"""
The parameter of each spatial kind, the value in pixels that changes nothing, and what severity 1 to 5 add to it as a
share of the image's short side: the same share looks alike at every resolution, the same number of pixels does not.
"""


class Degradation(NamedTuple):
    """
    One named degradation.

    Args:
        kind (`str`):
            One of `DEGRADATIONS`.
        level (`int` or `str`):
            Severity 1 to 5, or the preset `"release"` or `"strong"`.
    """

    kind: str
    level: int | str


def parse_degradation(name: str) -> Degradation:
    """
    Reads the name of a degradation as configs write it.

    Args:
        name (`str`):
            `kind@severity` with a severity of 1 to 5; for the release's four kinds also `kind` alone (its first
            strength) and `kind@strong` (its second one).

    Returns:
        [`Degradation`]

    Raises:
        `ValueError`: Unknown kind or severity, or a kind alone that has no preset.
    """
    kind, separator, level = name.partition("@")
    if kind not in _FUNCTIONS:
        raise ValueError(f"Unknown degradation {name!r}; the known kinds are {', '.join(DEGRADATIONS)}.")
    if separator and level in ("1", "2", "3", "4", "5"):
        return Degradation(kind, int(level))
    if kind in RELEASE_PRESETS and (not separator or level == "strong"):
        return Degradation(kind, level or "release")
    if not separator:
        raise ValueError(f"{kind!r} has no preset: write {kind}@severity with a severity of 1 to 5, like '{kind}@3'.")
    presets = " or 'strong'" if kind in RELEASE_PRESETS else ""
    raise ValueError(f"Unknown severity {level!r} in {name!r}: expected 1 to 5{presets}.")


def degradation_parameters(degradation: Degradation, short_side: int) -> dict[str, float]:
    """
    Looks up the strength of a degradation.

    Args:
        degradation ([`Degradation`]):
            Kind and level.
        short_side (`int`):
            Smaller of the image's height and width, in pixels.

    Returns:
        `dict[str, float]`: Keyword arguments of the function of that kind.
    """
    kind, level = degradation
    if isinstance(level, str):
        return dict({"release": RELEASE_PRESETS, "strong": RELEASE_STRONG_PRESETS}[level][kind])
    if kind in SEVERITIES:
        parameter, values = SEVERITIES[kind]
        return {parameter: values[level - 1]}
    parameter, neutral, shares = SPATIAL_SEVERITIES[kind]
    return {parameter: neutral + shares[level - 1] * short_side}


def degrade(image: Image.Image, name: str, seed: int) -> Image.Image:
    """
    Degrades one image.

    Args:
        image (`PIL.Image.Image`):
            Image of any mode that [`~data.images.to_rgb`] reads; it is left as it is.
        name (`str`):
            Degradation as [`parse_degradation`] reads it.
        seed (`int`):
            Seed of the noise or the direction of motion, at least 0.

    Returns:
        `PIL.Image.Image`: RGB image of the same size.

    Raises:
        `ValueError`: Unknown name, or a negative seed.
    """
    degradation = parse_degradation(name)
    parameters: dict[str, Any] = {**degradation_parameters(degradation, min(image.size))}
    rng = _generator(seed, "strength")
    if degradation.kind == "gaussian_noise":
        parameters["rng"] = rng
    elif degradation.kind == "motion_blur":
        parameters["angle"] = rng.uniform(0, 180)
    return Image.fromarray(_FUNCTIONS[degradation.kind](np.array(to_rgb(image)), **parameters))


def choose_degradation(names: Sequence[str], rng: np.random.Generator) -> str:
    """
    Draws one of several degradations, each alike.

    Args:
        names (`Sequence[str]`):
            Degradations as [`parse_degradation`] reads them, at least one.
        rng (`np.random.Generator`):
            Source of the draw.

    Returns:
        `str`: One of `names`.

    Raises:
        `ValueError`: No names, a single string, or an unknown name, drawn or not.
    """
    if isinstance(names, str) or len(names) == 0:
        raise ValueError(f"Expected a list of at least one degradation, got {names!r}.")
    for name in names:
        parse_degradation(name)
    return names[int(rng.integers(len(names)))]


def pixel_hash(image: Image.Image) -> str:
    """
    Hashes an image's size and its RGB pixels: the same pixels give the same hash in any file and container.

    Args:
        image (`PIL.Image.Image`):
            Image of any mode that [`~data.images.to_rgb`] reads.

    Returns:
        `str`: 32 hexadecimal digits.
    """
    digest = hashlib.blake2b(f"{image.width}x{image.height}:".encode(), digest_size=16)
    digest.update(to_rgb(image).tobytes())
    return digest.hexdigest()


def view_seed(degradation_seed: int, pixel_hash: str, epoch: float) -> int:
    """
    Derives the seed of a degraded view; the same on every platform and in every process.

    Args:
        degradation_seed (`int`):
            Seed of the run's degradations.
        pixel_hash (`str`):
            What [`pixel_hash`] gives for the image.
        epoch (`float`):
            Epoch at generation; its floor counts, so that every epoch brings a new view.

    Returns:
        `int`: In [0, 2^64).
    """
    key = f"{degradation_seed}/{pixel_hash}/{math.floor(epoch)}"
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def degraded_view(
    image: Image.Image, names: Sequence[str], *, degradation_seed: int, epoch: float
) -> tuple[Image.Image, str]:
    """
    Draws one degradation for an image and applies it.

    Args:
        image (`PIL.Image.Image`):
            Original, at the resolution at which the model reads it: resizing afterwards averages noise away.
        names (`Sequence[str]`):
            Degradations to draw from.
        degradation_seed (`int`):
            Seed of the run's degradations.
        epoch (`float`):
            Epoch at generation; its floor counts.

    Returns:
        `tuple[PIL.Image.Image, str]`: The view (RGB, same size) and the name of its degradation.
    """
    views, name = degraded_views([image], names, degradation_seed=degradation_seed, epoch=epoch)
    return views[0], name


def degraded_views(
    images: Sequence[Image.Image], names: Sequence[str], *, degradation_seed: int, epoch: float
) -> tuple[list[Image.Image], str]:
    """
    Draws one degradation for all images of a prompt and applies it to each, with noise of its own; parameters as in
    [`degraded_view`].

    Returns:
        `tuple[list[PIL.Image.Image], str]`: The views (RGB, each of its original's size) and the name.

    Raises:
        `ValueError`: No images, or no or unknown names.
    """
    if not images:
        raise ValueError("There is no image to degrade.")
    hashes = [pixel_hash(image) for image in images]
    prompt_seed = view_seed(degradation_seed, "+".join(hashes), epoch)
    name = choose_degradation(names, _generator(prompt_seed, "choice"))
    seeds = [view_seed(degradation_seed, digest, epoch) for digest in hashes]
    return [degrade(image, name, seed) for image, seed in zip(images, seeds, strict=True)], name


def _generator(seed: int, purpose: str) -> np.random.Generator:
    # PCG64 by name: `default_rng` may change its generator between versions. The purpose keeps streams apart.
    if seed < 0:
        raise ValueError(f"A seed must be at least 0, got {seed}.")
    stream = {"strength": 0, "choice": 1}[purpose]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(stream,))))
