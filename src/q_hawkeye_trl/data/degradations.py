"""
Degraded views of images: kinds by name (`gaussian_noise`, `motion_blur@4`), five severities, combinations of two
(`gaussian_noise@3+jpeg@2`), seeds from the pixels.

No global random state is used. A view depends only on the seed, the decoded pixels and the epoch, so every rank and
every restart draws the same one.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from . import image_distortions
from .images import to_rgb

RELEASE_PRESETS: dict[str, dict[str, float]] = {
    "gaussian_noise": {"std": 45.0},
    "gaussian_blur": {"radius": 2.0},
    "jpeg": {"quality": 5, "repeats": 3},
    "darken": {"factor": 0.6},
}
"""
Strengths of the four kinds of the released Q-Hawkeye code; radii in pixels at any image size. Its JPEG compression is
repeated three times; the second and third hardly change a pixel at this quality.
"""

DEGRADATIONS = (
    *RELEASE_PRESETS,
    *("motion_blur", "defocus_blur", "brighten", "contrast", "saturation", "pixelate", "jpeg2000", "banding"),
)
"""The known kinds, each a function of `image_distortions`."""

RELEASE_STRONG_PRESETS: dict[str, dict[str, float]] = {
    "gaussian_noise": {"std": 65.0},
    "gaussian_blur": {"radius": 4.0},
    "jpeg": {"quality": 5, "repeats": 3},
    "darken": {"factor": 0.5},
}
"""What the release applies to a pair whose first degradation was too mild."""

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
"""The parameter of each other kind and its values at severities 1 to 5."""

SPATIAL_SEVERITIES = {
    "gaussian_blur": ("radius", 0.3, (0.0015, 0.003, 0.006, 0.012, 0.024)),
    "defocus_blur": ("radius", 0.5, (0.002, 0.004, 0.008, 0.016, 0.032)),
    "motion_blur": ("length", 1.0, (0.006, 0.012, 0.024, 0.048, 0.096)),
    "pixelate": ("block", 1.0, (0.003, 0.006, 0.012, 0.024, 0.048)),
}
"""
The parameter of each spatial kind, its value in pixels that changes nothing, and what severities 1 to 5 add to that as
a share of the image's short side, so that a severity looks alike at every resolution.
"""


class Degradation(NamedTuple):
    """A kind of `DEGRADATIONS` and its level: a severity from 1 to 5, or the preset `"release"` or `"strong"`."""

    kind: str
    level: int | str


class Combination(NamedTuple):
    """Two degradations of different kinds; `second` is applied to the result of `first`."""

    first: Degradation
    second: Degradation


class Step(NamedTuple):
    """
    One application of a distortion to an image, before any noise is drawn.

    `position` is 0 for the first or only degradation of a view and 1 for the second; each has its own random streams.
    `parameters` are the keyword arguments of the distortion, a drawn angle included.
    """

    position: int
    kind: str
    level: int | str
    parameters: dict[str, float]


def parse_degradation(name: str) -> Degradation | Combination:
    """
    Read the name of a degradation as configs write it.

    Args:
        name (`str`):
            `kind@severity` with a severity from 1 to 5; for the four kinds of the release also `kind` alone (its first
            strength) and `kind@strong` (its second one); or two of these of different kinds joined by `+`, applied
            from left to right.

    Returns:
        [`Degradation`], or [`Combination`] where there are two.

    Raises:
        `ValueError`: Unknown kind or severity, a kind alone that has no preset, more than two degradations, or two of
        the same kind.
    """
    parts = name.split("+")
    if len(parts) > 2:
        raise ValueError(f"{name!r} joins {len(parts)} degradations; join at most two, like 'jpeg@2+darken@3'.")
    parsed = [_parse_single(part if len(parts) > 1 else name) for part in parts]
    if len(parsed) == 1:
        return parsed[0]
    if parsed[0].kind == parsed[1].kind:
        raise ValueError(f"{name!r} combines {parsed[0].kind} with itself; name two different kinds.")
    return Combination(*parsed)


def _parse_single(name: str) -> Degradation:
    kind, separator, level = name.partition("@")
    if kind not in DEGRADATIONS:
        raise ValueError(f"Unknown degradation {name!r}; the known kinds are {', '.join(DEGRADATIONS)}.")
    if separator and level in ("1", "2", "3", "4", "5"):
        return Degradation(kind, int(level))
    if kind in RELEASE_PRESETS and (not separator or level == "strong"):
        return Degradation(kind, level or "release")
    if not separator:
        raise ValueError(f"{kind!r} has no preset; give a severity from 1 to 5, like '{kind}@3'.")
    presets = " or 'strong'" if kind in RELEASE_PRESETS else ""
    raise ValueError(f"Unknown severity {level!r} in {name!r}; expected 1 to 5{presets}.")


def parts_of(name: str) -> tuple[Degradation, ...]:
    """Read a name as one degradation, or as the two of a combination in their order."""
    parsed = parse_degradation(name)
    return tuple(parsed) if isinstance(parsed, Combination) else (parsed,)


def degradation_kinds(name: str) -> tuple[str, ...]:
    """Return the kinds of a degradation or a combination."""
    return tuple(part.kind for part in parts_of(name))


def expand_degradations(names: Sequence[str]) -> list[str]:
    """
    Replace the names of groups by their members.

    Args:
        names (`Sequence[str]`):
            Degradations as [`parse_degradation`] reads them, and the groups `release` and `release@strong` (the four
            kinds of the release at its first or second strength), `all@3` (every kind at that severity) and `all`
            (every kind at every severity).

    Returns:
        `list[str]`: Names of single degradations and combinations, each once, in order.

    Raises:
        `ValueError`: An unknown name, or none.
    """
    _check_list(names)
    groups = {"release": list(RELEASE_PRESETS), "release@strong": [f"{kind}@strong" for kind in RELEASE_PRESETS]}
    groups |= {f"all@{severity}": [f"{kind}@{severity}" for kind in DEGRADATIONS] for severity in range(1, 6)}
    groups["all"] = [f"{kind}@{severity}" for kind in DEGRADATIONS for severity in range(1, 6)]
    expanded = [member for name in names for member in groups.get(name, [name])]
    for name in expanded:
        parse_degradation(name)
    return list(dict.fromkeys(expanded))


def degradation_parameters(degradation: Degradation, short_side: int) -> dict[str, float]:
    """Return the keyword arguments of a distortion for an image whose short side has that many pixels."""
    kind, level = degradation
    if isinstance(level, str):
        return dict({"release": RELEASE_PRESETS, "strong": RELEASE_STRONG_PRESETS}[level][kind])
    if kind in SEVERITIES:
        parameter, values = SEVERITIES[kind]
        return {parameter: values[level - 1]}
    parameter, neutral, shares = SPATIAL_SEVERITIES[kind]
    return {parameter: neutral + shares[level - 1] * short_side}


def degradation_steps(name: str, short_side: int, seed: int) -> list[Step]:
    """
    Return the steps of a degradation, two for a combination, for an image whose short side has that many pixels.

    The first step of a combination is that of its first degradation alone, so a view can be strengthened later.
    """
    steps = []
    for position, degradation in enumerate(parts_of(name)):
        parameters = degradation_parameters(degradation, short_side)
        if degradation.kind == "motion_blur":
            parameters["angle"] = _generator(seed, _STRENGTH_STREAMS[position]).uniform(0, 180)
        steps.append(Step(position, *degradation, parameters))
    return steps


def apply_step(array: np.ndarray, step: Step, seed: int) -> np.ndarray:
    """Apply a step to a uint8 image (H, W, 3): the original at position 0, the view of the first step at 1."""
    distortion: Callable[..., np.ndarray] = getattr(image_distortions, step.kind)
    parameters: dict[str, Any] = {**step.parameters}
    if step.kind == "gaussian_noise":
        parameters["rng"] = _generator(seed, _STRENGTH_STREAMS[step.position])
    return distortion(array, **parameters)


def degrade(image: Image.Image, name: str, seed: int) -> Image.Image:
    """
    Degrade one image.

    Args:
        image (`PIL.Image.Image`):
            Image of any mode that [`~data.images.to_rgb`] reads; it is not changed.
        name (`str`):
            Degradation as [`parse_degradation`] reads it.
        seed (`int`):
            Seed of the noise or the direction of motion, at least 0.

    Returns:
        `PIL.Image.Image`: RGB image of the same size.

    Raises:
        `ValueError`: Unknown name, or a negative seed.
    """
    _check_seed(seed)
    array = np.array(to_rgb(image))
    for step in degradation_steps(name, min(image.size), seed):
        array = apply_step(array, step, seed)
    return Image.fromarray(array)


def draw_degradation(names: Sequence[str], seed: int, purpose: str = "choice") -> str:
    """Draw a degradation with equal probability from the seed that [`view_seed`] gives for an image or prompt."""
    _check_list(names)
    for name in names:
        parse_degradation(name)
    return names[int(_generator(seed, purpose).integers(len(names)))]


def draw_second(first: str, names: Sequence[str], seed: int) -> str | None:
    """
    Draw a single degradation of another kind that strengthens a view, and return the combination `first+second`.

    Returns `None` if `first` is a combination already or `names` has no other kind.
    """
    for name in names:
        if len(degradation_kinds(name)) > 1:
            raise ValueError(f"{name!r} is a combination; a view is strengthened by a single degradation.")
    used = degradation_kinds(first)
    others = [name for name in names if degradation_kinds(name)[0] not in used]
    if len(used) > 1 or not others:
        return None
    return f"{first}+{draw_degradation(others, seed, 'second choice')}"


def pixel_hash(image: Image.Image) -> str:
    """Hash an image's size and RGB pixels to 32 hexadecimal digits, the same in any file format and container."""
    digest = hashlib.blake2b(f"{image.width}x{image.height}:".encode(), digest_size=16)
    digest.update(to_rgb(image).tobytes())
    return digest.hexdigest()


def view_seed(degradation_seed: int, pixel_hash: str, epoch: float) -> int:
    """
    Derive the seed of a degraded view, in [0, 2^64), the same on every platform and in every process.

    The seed changes with the floor of `epoch`. Another epoch can still draw the same kind, and a deterministic kind
    (all but noise and motion blur) then gives the same view.
    """
    key = f"{degradation_seed}/{pixel_hash}/{math.floor(epoch)}"
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def degraded_views(
    images: Sequence[Image.Image], names: Sequence[str], *, degradation_seed: int, epoch: float
) -> tuple[list[Image.Image], str]:
    """
    Draw one degradation for all images of a prompt and apply it to each, with its own noise.

    Args:
        images (`Sequence[PIL.Image.Image]`):
            Originals at the resolution at which the model reads them: resizing afterwards averages noise away.
        names (`Sequence[str]`):
            Degradations to draw from.
        degradation_seed (`int`):
            Seed of the run's degradations.
        epoch (`float`):
            Epoch at generation, rounded down.

    Returns:
        `tuple[list[PIL.Image.Image], str]`: The views (RGB, each of its original's size) and the degradation's name.
    """
    if not images:
        raise ValueError("There is no image to degrade.")
    hashes = [pixel_hash(image) for image in images]
    name = draw_degradation(names, view_seed(degradation_seed, "+".join(hashes), epoch))
    seeds = [view_seed(degradation_seed, digest, epoch) for digest in hashes]
    return [degrade(image, name, seed) for image, seed in zip(images, seeds, strict=True)], name


_STRENGTH_STREAMS = ("strength", "second strength")


def _generator(seed: int, purpose: str) -> np.random.Generator:
    # PCG64 by name: `default_rng` may change its generator between versions. The purpose keeps streams apart.
    _check_seed(seed)
    stream = {"strength": 0, "choice": 1, "second strength": 2, "second choice": 3}[purpose]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(stream,))))


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise ValueError(f"A seed must be at least 0, got {seed}.")


def _check_list(names: Sequence[str]) -> None:
    if isinstance(names, str) or len(names) == 0:
        raise ValueError(f"Expected a list of at least one degradation, got {names!r}.")
