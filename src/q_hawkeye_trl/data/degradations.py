"""
Degraded views of images: kinds by name (`gaussian_noise`, `motion_blur@4`), five severities, combinations of two
(`gaussian_noise@3+jpeg@2`), seeds from the pixels.

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
from .strengths import (
    DEGRADATIONS,
    RELEASE_PRESETS,
    RELEASE_STRONG_PRESETS,
    SEVERITIES,
    SPATIAL_SEVERITIES,
    Combination,
    Degradation,
    degradation_kinds,
    degradation_parameters,
    expand_degradations,
    parse_degradation,
    parts_of,
)

__all__ = [
    "DEGRADATIONS",
    "RELEASE_PRESETS",
    "RELEASE_STRONG_PRESETS",
    "SEVERITIES",
    "SPATIAL_SEVERITIES",
    "Combination",
    "Degradation",
    "Step",
    "apply_step",
    "choose_degradation",
    "degradation_kinds",
    "degradation_parameters",
    "degradation_steps",
    "degrade",
    "degraded_view",
    "degraded_views",
    "draw_degradation",
    "draw_second",
    "expand_degradations",
    "parse_degradation",
    "pixel_hash",
    "view_seed",
]

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


class Step(NamedTuple):
    """
    One application of a function to an image: all that is drawn before the pixels are at hand.

    Args:
        position (`int`):
            0 for the first or only degradation of a view, 1 for the second; each has random streams of its own.
        kind (`str`):
            One of `DEGRADATIONS`.
        level (`int` or `str`):
            Severity or preset.
        parameters (`dict[str, float]`):
            Keyword arguments of the function of that kind, a drawn angle included; noise is drawn by [`apply_step`].
    """

    position: int
    kind: str
    level: int | str
    parameters: dict[str, float]


def degradation_steps(name: str, short_side: int, seed: int) -> list[Step]:
    """
    Works out what a degradation does to one image.

    Args:
        name (`str`):
            Degradation as [`parse_degradation`] reads it.
        short_side (`int`):
            Smaller of the image's height and width, in pixels.
        seed (`int`):
            Seed of the direction of motion, at least 0.

    Returns:
        `list[Step]`: One step, or the two of a combination. The first is that of the first degradation alone, so that
        a view can be strengthened later on.
    """
    steps = []
    for position, degradation in enumerate(parts_of(name)):
        parameters = degradation_parameters(degradation, short_side)
        if degradation.kind == "motion_blur":
            parameters["angle"] = _generator(seed, _STRENGTH_STREAMS[position]).uniform(0, 180)
        steps.append(Step(position, *degradation, parameters))
    return steps


def apply_step(array: np.ndarray, step: Step, seed: int) -> np.ndarray:
    """
    Applies one step to an image.

    Args:
        array (`np.ndarray`):
            Image of shape `(H, W, 3)`, dtype `uint8`: the original at position 0, the view of the first step at 1.
        step ([`Step`]):
            What [`degradation_steps`] gave for this image and seed.
        seed (`int`):
            Seed of the noise, at least 0.

    Returns:
        `np.ndarray` of the same shape and dtype.
    """
    parameters: dict[str, Any] = {**step.parameters}
    if step.kind == "gaussian_noise":
        parameters["rng"] = _generator(seed, _STRENGTH_STREAMS[step.position])
    return _FUNCTIONS[step.kind](array, **parameters)


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
    if seed < 0:
        raise ValueError(f"A seed must be at least 0, got {seed}.")
    array = np.array(to_rgb(image))
    for step in degradation_steps(name, min(image.size), seed):
        array = apply_step(array, step, seed)
    return Image.fromarray(array)


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


def draw_degradation(names: Sequence[str], seed: int) -> str:
    """
    Draws the degradation of a view; see [`choose_degradation`].

    Args:
        names (`Sequence[str]`):
            Degradations to draw from.
        seed (`int`):
            What [`view_seed`] gives for the image (or for all images of a prompt).

    Returns:
        `str`: One of `names`.
    """
    return choose_degradation(names, _generator(seed, "choice"))


def draw_second(first: str, names: Sequence[str], seed: int) -> str | None:
    """
    Draws the degradation that strengthens a view, among those of another kind.

    Args:
        first (`str`):
            Degradation of the view.
        names (`Sequence[str]`):
            Single degradations to draw from.
        seed (`int`):
            What [`view_seed`] gives for the image.

    Returns:
        `str` or `None`: The combination, `first+second`; `None` where the view has two kinds already or `names` has no
        other one.

    Raises:
        `ValueError`: An unknown name or a combination among `names`.
    """
    kinds = {}
    for name in names:
        kinds[name] = degradation_kinds(name)
        if len(kinds[name]) > 1:
            raise ValueError(f"{name!r} is a combination already: a view is strengthened by a single degradation.")
    taken = degradation_kinds(first)
    others = [name for name in names if kinds[name][0] not in taken]
    if len(taken) > 1 or not others:
        return None
    return f"{first}+{choose_degradation(others, _generator(seed, 'second choice'))}"


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
            Epoch at generation; its floor counts, so that every epoch draws anew. The draw can fall on the same kind
            again, and kinds without chance in them (all but noise and motion blur) then give the same view.

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
    name = draw_degradation(names, prompt_seed)
    seeds = [view_seed(degradation_seed, digest, epoch) for digest in hashes]
    return [degrade(image, name, seed) for image, seed in zip(images, seeds, strict=True)], name


_STRENGTH_STREAMS = ("strength", "second strength")


def _generator(seed: int, purpose: str) -> np.random.Generator:
    # PCG64 by name: `default_rng` may change its generator between versions. The purpose keeps streams apart.
    if seed < 0:
        raise ValueError(f"A seed must be at least 0, got {seed}.")
    stream = {"strength": 0, "choice": 1, "second strength": 2, "second choice": 3}[purpose]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(stream,))))
