"""Two models on the same images: the differences of their figures over the same draws."""

import numpy as np

from .figures import MIDDLE, draw_figures, point_figures, target_of
from .intervals import DRAWS, difference_interval, replicate, units_of
from .logistic import fit_logistic
from .tables import ScoreTable


def compare_tables(
    first: ScoreTable, second: ScoreTable, *, target: str = "mos", draws: int = DRAWS, seed: int = 0
) -> dict:
    """
    Compares two models on the images of one set by a paired bootstrap: each draw measures both on the same images, by
    group where the set has groups, with the logistic fitted anew to each. A missing score counts as 3, since dropping
    it would compare the models on different images.

    Args:
        first ([`ScoreTable`]):
            Scores of the first model.
        second ([`ScoreTable`]):
            Scores of the other one, for the same images with the same labels.
        target (`str`, *optional*, defaults to `"mos"`):
            As in [`~evaluation.figures.set_figures`].
        draws (`int`, *optional*, defaults to `1000`):
            Draws of the bootstrap.
        seed (`int`, *optional*, defaults to `0`):
            Its seed.

    Returns:
        `dict`: `images`, `units`, and for each figure, for example `srcc`: `srcc`, first minus second; `srcc_low`,
        `srcc_high`, its 95% interval; `srcc_first`, `srcc_second`.

    Raises:
        `ValueError`: The images, their labels or their groups differ; the message names one that does.
    """
    check_same(first, second)
    answers, mos = target_of(first, target), first.mos
    scores = [np.where(np.isnan(table.score), MIDDLE, table.score) for table in (first, second)]
    curves = [fit_logistic(score, answers) for score in scores]

    def measure(rows: np.ndarray) -> dict[str, float]:
        one, other = (
            draw_figures(score[rows], answers[rows], mos[rows], curve)
            for score, curve in zip(scores, curves, strict=True)
        )
        return {name: one[name] - other[name] for name in one}

    whole = [point_figures(score, answers, mos, curve) for score, curve in zip(scores, curves, strict=True)]
    images, units = len(first), units_of(len(first), first.group)
    replicates = replicate(measure, images, first.group, draws=draws, seed=seed)
    result: dict = {"images": images, "units": units, "draws": draws, "seed": seed}
    for name in whole[0]:
        difference = whole[0][name] - whole[1][name]
        low, high = difference_interval(difference, replicates[name], images=images, units=units)
        result |= {name: difference, f"{name}_low": low, f"{name}_high": high}
        result |= {f"{name}_first": whole[0][name], f"{name}_second": whole[1][name]}
    return result


def check_same(first: ScoreTable, second: ScoreTable) -> None:
    """Checks that two tables have the same images, labels and groups; parameters and errors as [`compare_tables`]."""
    odd = sorted(set(first.image_id) ^ set(second.image_id))
    if odd:
        raise ValueError(
            f"{first.name}: {len(odd)} images are scored by one model only ({', '.join(odd[:3])}, ...); a comparison "
            "needs the same images on both sides."
        )
    for column in ("mos", "mos_raw"):
        one, other = getattr(first, column), getattr(second, column)
        if one is None or other is None:
            continue
        differing = np.flatnonzero(~np.isclose(one, other, rtol=0, atol=1e-6))
        if len(differing):
            row = differing[0]
            raise ValueError(
                f"{first.name}: `{column}` of {first.image_id[row]} is {one[row]} on one side and {other[row]} on "
                f"the other ({len(differing)} images differ); both files need the same labels."
            )
    if first.group != second.group:
        raise ValueError(f"{first.name}: the groups of the two files differ; give both the same `group` column.")
