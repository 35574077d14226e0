"""
How degradations are named and how strong they are: `gaussian_noise` (the release's strength), `motion_blur@4` (one of
five severities), `gaussian_noise@3+jpeg@2` (two, one after the other).
"""

from collections.abc import Sequence
from typing import NamedTuple

DEGRADATIONS = (
    "gaussian_noise",
    "gaussian_blur",
    "jpeg",
    "darken",
    "motion_blur",
    "defocus_blur",
    "brighten",
    "contrast",
    "saturation",
    "pixelate",
    "jpeg2000",
    "banding",
)
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


class Combination(NamedTuple):
    """
    Two degradations of different kinds, one applied to the result of the other.

    Args:
        first ([`Degradation`]):
            What meets the original.
        second ([`Degradation`]):
            What meets the degraded view.
    """

    first: Degradation
    second: Degradation


def parse_degradation(name: str) -> Degradation | Combination:
    """
    Reads the name of a degradation as configs write it.

    Args:
        name (`str`):
            `kind@severity` with a severity of 1 to 5; for the release's four kinds also `kind` alone (its first
            strength) and `kind@strong` (its second one); two of these of different kinds joined by `+`, applied from
            left to right.

    Returns:
        [`Degradation`], or [`Combination`] where there are two.

    Raises:
        `ValueError`: Unknown kind or severity, a kind alone that has no preset, more than two degradations, or two of
        the same kind.
    """
    parts = name.split("+")
    if len(parts) == 1:
        return _parse_single(name)
    if len(parts) > 2:
        raise ValueError(f"{name!r} joins {len(parts)} degradations: a combination is of two, like 'jpeg@2+darken@3'.")
    first, second = map(_parse_single, parts)
    if first.kind == second.kind:
        raise ValueError(f"{name!r} combines {first.kind} with itself: name two different kinds.")
    return Combination(first, second)


def _parse_single(name: str) -> Degradation:
    kind, separator, level = name.partition("@")
    if kind not in DEGRADATIONS:
        raise ValueError(f"Unknown degradation {name!r}; the known kinds are {', '.join(DEGRADATIONS)}.")
    if separator and level in ("1", "2", "3", "4", "5"):
        return Degradation(kind, int(level))
    if kind in RELEASE_PRESETS and (not separator or level == "strong"):
        return Degradation(kind, level or "release")
    if not separator:
        raise ValueError(f"{kind!r} has no preset: write {kind}@severity with a severity of 1 to 5, like '{kind}@3'.")
    presets = " or 'strong'" if kind in RELEASE_PRESETS else ""
    raise ValueError(f"Unknown severity {level!r} in {name!r}: expected 1 to 5{presets}.")


def expand_degradations(names: Sequence[str]) -> list[str]:
    """
    Replaces the short names of whole groups by their members.

    Args:
        names (`Sequence[str]`):
            Degradations as [`parse_degradation`] reads them, and the groups `release` and `release@strong` (the
            release's four kinds at its first or second strength), `all@3` (every kind at that severity) and `all`
            (every kind at every severity).

    Returns:
        `list[str]`: Names of single degradations and combinations, each once, in order.

    Raises:
        `ValueError`: An unknown name, or none.
    """
    groups = {"release": list(RELEASE_PRESETS), "release@strong": [f"{kind}@strong" for kind in RELEASE_PRESETS]}
    groups |= {f"all@{severity}": [f"{kind}@{severity}" for kind in DEGRADATIONS] for severity in range(1, 6)}
    groups["all"] = [f"{kind}@{severity}" for kind in DEGRADATIONS for severity in range(1, 6)]
    if isinstance(names, str) or not names:
        raise ValueError(f"Expected a list of at least one degradation, got {names!r}.")
    expanded = [member for name in names for member in groups.get(name, [name])]
    for name in expanded:
        parse_degradation(name)
    return list(dict.fromkeys(expanded))


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


def degradation_kinds(name: str) -> tuple[str, ...]:
    """
    Names the kinds of a degradation or a combination.

    Args:
        name (`str`):
            Degradation as [`parse_degradation`] reads it.

    Returns:
        `tuple[str, ...]`: One or two of `DEGRADATIONS`.
    """
    return tuple(part.kind for part in parts_of(name))


def parts_of(name: str) -> tuple[Degradation, ...]:
    """
    Reads a name as [`parse_degradation`] does.

    Args:
        name (`str`):
            Degradation.

    Returns:
        `tuple[Degradation, ...]`: One degradation, or the two of a combination in their order.
    """
    parsed = parse_degradation(name)
    return (parsed.first, parsed.second) if isinstance(parsed, Combination) else (parsed,)
