"""Everything that a report says about a set, worked out once: the table, the JSON and the pages read it from here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .compare import check_same, compare_tables
from .distortions import distortion_of
from .figures import MIDDLE, breakdown, set_figures
from .intervals import DRAWS
from .presets import Preset, departures
from .published import PublishedRow, published_rows
from .tables import ScoreTable

MANY_MISSING = 0.01
"""Share of missing scores from which a report says that leaving them out flatters."""


@dataclass(frozen=True)
class SetResult:
    """
    One set: its images and all that was computed from them.

    Args:
        table ([`ScoreTable`]):
            The scored images.
        figures (`dict`):
            As [`~evaluation.figures.set_figures`] returns them.
        by_distortion, by_group (`dict[str, dict]`):
            As [`~evaluation.figures.breakdown`]; empty where the set has no kinds of distortion, or no references.
        warnings (`list[str]`):
            What a reader of the figures must know.
        published (`list[PublishedRow]`):
            Figures of others, quoted.
        comparison (`dict`, *optional*):
            As [`~evaluation.compare.compare_tables`], with `other`, the name of the other model.
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
        """Score minus MOS, a missing score counted as 3, shape `(N,)`."""
        return np.where(np.isnan(self.table.score), MIDDLE, self.table.score) - self.table.mos

    def worst(self, count: int) -> np.ndarray:
        """Rows of the largest absolute errors, largest first; equal ones in the order of the table."""
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
    Evaluates sets one by one.

    Args:
        tables (`Sequence[ScoreTable]`):
            The scored images of each set; each name once.
        preset ([`Preset`], *optional*):
            Protocol: which labels the correlations are taken with, and which test set it means.
        others (`Sequence[ScoreTable]`, *optional*):
            Scores of another model for the same sets, to compare with.
        other_name (`str`, *optional*):
            What to call that model.
        published (`bool`, *optional*, defaults to `False`):
            Whether to quote published figures.
        draws (`int`, *optional*, defaults to `1000`), seed (`int`, *optional*, defaults to `0`):
            Draws of the bootstrap, and its seed.
        say (`Callable[[str], None]`, *optional*):
            Gets the name of each set before its bootstrap.

    Returns:
        `list[SetResult]`: In order.

    Raises:
        `ValueError`: A name twice, or a set that the other model has not scored.
    """
    results = []
    for table, other in zip(tables, matched(tables, others, other_name), strict=True):
        say(table.name)
        target = preset.target if preset is not None and table.mos_raw is not None else "mos"
        comparison = None
        if other is not None:
            comparison = {
                "other": other_name,
                **compare_tables(table, other, target=target, draws=draws, seed=seed),
            }
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
    Finds for each set the other model's table of the same images.

    Args:
        tables (`Sequence[ScoreTable]`), others (`Sequence[ScoreTable]`), other_name (`str`):
            As in [`evaluate_sets`]; the scores don't matter, so that it can be asked before there are any.

    Returns:
        `list[ScoreTable]` or `list[None]`: One for each of `tables`; `None` without another model. Of one set and one
        other the names need not agree.

    Raises:
        `ValueError`: As [`evaluate_sets`] and [`~evaluation.compare.compare_tables`].
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
    """
    Arranges results for a JSON file.

    Args:
        results (`Sequence[SetResult]`):
            Results of the sets.
        preset ([`Preset`], *optional*):
            Protocol that was asked for.

    Returns:
        `dict`: By the name of the set: the figures with `_low` and `_high`, and beside them `with_failures`, `spread`,
        `by_distortion`, `by_group`, `warnings`, `preset`, `published` (each row with `quoted: true`) and `comparison`.
        Figures that are undefined are `nan`, which [`~files.write_json`] writes as `null`.
    """
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
            f"{preset.name} takes the labels as released (mos_raw), which are not there: mos is used, which gives the "
            "same correlations only if it is a rising straight line of them."
        )
    missing = 1 - figures["coverage"]
    if missing > MANY_MISSING:
        warnings.append(
            f"{missing:.1%} of the images have no score: leaving them out flatters the model, so look at the figures "
            "with failures."
        )
    if table.out_of_range:
        warnings.append(f"Scores that lie outside of the scale: {table.out_of_range}; they count as they are.")
    if figures["logistic"] is not None and not figures["logistic"]["rises"]:
        warnings.append("The fitted curve falls: higher scores go with lower MOS, which the fitted PLCC hides.")
    if figures["resampled"] == "group" and figures["units"] == 1:
        warnings.append("All images are made from one reference: there is nothing to draw, so there are no intervals.")
    elif figures["resampled"] == "group" and figures["units"] < 40:
        warnings.append(
            f"{figures['units']} references: with so few the intervals tend to be somewhat too narrow (about 90% "
            "instead of 95% at 20)."
        )
    return warnings
