"""The content of a report, computed once for the terminal, the JSON file and the pages."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .figures import MIDDLE, breakdown, check_same, compare_tables, set_figures
from .intervals import DRAWS
from .public_sets import Preset, PublishedRow, departures, distortion_of, published_rows
from .score_tables import ScoreTable

MANY_MISSING = 0.01
"""Share of missing scores above which the report warns."""


@dataclass(frozen=True)
class SetResult:
    """
    One set: its images and everything computed from them.

    Args:
        table ([`ScoreTable`]):
            The scored images.
        figures (`dict`):
            As [`~evaluation.figures.set_figures`] returns them.
        by_distortion, by_group (`dict[str, dict]`):
            As [`~evaluation.figures.breakdown`] returns them; empty without kinds of distortion, or references.
        warnings (`list[str]`):
            Caveats for the reader of the figures.
        published (`list[PublishedRow]`):
            Quoted figures.
        comparison (`dict`, *optional*):
            As [`~evaluation.figures.compare_tables`], with `other`, the name of the other model.
    """

    table: ScoreTable
    figures: dict
    by_distortion: dict[str, dict]
    by_group: dict[str, dict]
    warnings: list[str]
    published: list[PublishedRow] = field(default_factory=list)
    comparison: dict | None = None

    @property
    def name(self) -> str:
        """Name of the set."""
        return self.table.name

    @property
    def errors(self) -> np.ndarray:
        """Score minus MOS with 3 for a missing score, shape `(N,)`."""
        return np.where(np.isnan(self.table.score), MIDDLE, self.table.score) - self.table.mos

    def worst(self, count: int) -> np.ndarray:
        """Return the rows of the largest absolute errors, largest first."""
        return np.argsort(-np.abs(self.errors), kind="stable")[:count]


def evaluate_sets(
    tables: Sequence[ScoreTable],
    *,
    preset: Preset | None = None,
    others: Sequence[ScoreTable] = (),
    other_name: str = "",
    published: bool = False,
    draws: int = DRAWS,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> list[SetResult]:
    """
    Evaluate sets one by one.

    Args:
        tables (`Sequence[ScoreTable]`):
            The scored images of each set, with distinct names.
        preset ([`Preset`], *optional*):
            Protocol: the labels of the correlations, and the expected test set.
        others (`Sequence[ScoreTable]`, *optional*):
            Scores of another model for the same sets, to compare with.
        other_name (`str`, *optional*):
            Name of that model.
        published (`bool`, *optional*, defaults to `False`):
            Whether to quote published figures.
        draws (`int`, *optional*, defaults to `1000`), seed (`int`, *optional*, defaults to `0`):
            Draws of the bootstrap, and its seed.
        say (`Callable[[str], None]`, *optional*):
            Called with the name of each set before its bootstrap.

    Returns:
        `list[SetResult]`: In the order of `tables`.

    Raises:
        `ValueError`: Two sets have the same name, or the other model has not scored the same images.
    """
    results = []
    for table, other in zip(tables, matched(tables, others, other_name), strict=True):
        say(table.name)
        target = preset.target if preset is not None and table.mos_raw is not None else "mos"
        comparison = None
        if other is not None:
            differences = compare_tables(table, other, target=target, draws=draws, seed=seed)
            comparison = {"other": other_name, **differences}
        kinds = table.distortion or tuple(distortion_of(table.name, name) for name in table.image_id)
        figures = set_figures(table, target=target, draws=draws, seed=seed)
        results.append(
            SetResult(
                table=table,
                figures=figures,
                by_distortion=breakdown(table, kinds, target) if any(kinds) else {},
                by_group=breakdown(table, table.group, target) if table.group is not None else {},
                warnings=_warnings(table, figures, preset),
                published=published_rows(table.name) if published else [],
                comparison=comparison,
            )
        )
    return results


def matched(
    tables: Sequence[ScoreTable], others: Sequence[ScoreTable], other_name: str
) -> list[ScoreTable] | list[None]:
    """
    Return the other model's table for each set, `None` without another model; no scores are read.

    The names may differ if each side has one set. Raises `ValueError` as [`evaluate_sets`].
    """
    names = [table.name for table in tables]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"Two sets are named {', '.join(sorted(twice))}; rename a file or a `dataset` value.")
    if not others:
        return [None] * len(tables)
    by_name = {table.name: table for table in others}
    missing = [name for name in names if name not in by_name]
    if missing and not (len(tables) == len(others) == 1):
        raise ValueError(f"{other_name} has no scores of {', '.join(missing)} (it has {', '.join(by_name)}).")
    found = [by_name.get(name, others[0]) for name in names]
    for table, other in zip(tables, found, strict=True):
        check_same(table, other)
    return found


def as_json(results: Sequence[SetResult], preset: Preset | None = None) -> dict:
    """Arrange results for a JSON file, by the name of the set; undefined figures are `nan`."""
    return {
        result.name: {
            **result.figures,
            "preset": None if preset is None else preset.name,
            "by_distortion": result.by_distortion,
            "by_group": result.by_group,
            "warnings": result.warnings,
            "published": [{**row._asdict(), "quoted": True} for row in result.published],
            "comparison": result.comparison,
        }
        for result in results
    }


def _warnings(table: ScoreTable, figures: dict, preset: Preset | None) -> list[str]:
    warnings = [] if preset is None else departures(preset, table.name, len(table))
    if preset is not None and preset.target == "mos_raw" and table.mos_raw is None:
        warnings.append(
            f"{preset.name} correlates with the labels as released, but there is no mos_raw: mos is used. The "
            "correlations are the same only if mos is a rising linear function of the released labels."
        )
    missing = 1 - figures["coverage"]
    if missing > MANY_MISSING:
        warnings.append(
            f"{missing:.1%} of the images have no score. Leaving them out flatters the model: see the figures with "
            "failures."
        )
    if table.out_of_range:
        warnings.append(f"Scores outside the scale: {table.out_of_range}; they are not clamped.")
    if figures["logistic"] is not None and not figures["logistic"]["rises"]:
        warnings.append("The fitted curve falls: higher scores go with lower MOS, which the fitted PLCC hides.")
    if figures["resampled"] == "group" and figures["units"] == 1:
        warnings.append("All images are made from one reference, so there are no intervals.")
    elif figures["resampled"] == "group" and figures["units"] < 40:
        warnings.append(
            f"Only {figures['units']} references: the intervals tend to be too narrow (coverage about 90% instead of "
            "95% at 20)."
        )
    return warnings
