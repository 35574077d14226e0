"""The summary that a scoring run prints: counts, and the best, worst and least certain images."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..wording import counted, number, printable
from .scored import ScoredImage


@dataclass
class Summary:
    """
    Counts of a run and its extremes.

    Args:
        images (`int`):
            Number of images.
        scored (`int`), unparsed (`int`), broken (`int`):
            Images with a score, readable images without one in any answer, and images with an error.
        clamped (`int`):
            Rollouts outside the scale.
        best, worst, uncertain (`list[ScoredImage]`):
            Images of the highest and the lowest score and of the largest spread, the most extreme first.
        all (`list[ScoredImage]`):
            Every image with a score, the best first, if the lists above would hold most of them; otherwise empty.
        errors (`list[ScoredImage]`):
            The first images with an error.
    """

    images: int = 0
    scored: int = 0
    unparsed: int = 0
    broken: int = 0
    clamped: int = 0
    best: list[ScoredImage] = field(default_factory=list)
    worst: list[ScoredImage] = field(default_factory=list)
    uncertain: list[ScoredImage] = field(default_factory=list)
    all: list[ScoredImage] = field(default_factory=list)
    errors: list[ScoredImage] = field(default_factory=list)


def summarize(scored: Iterable[ScoredImage], shown: int = 5) -> Summary:
    """Count scores and find the extremes, `shown` in each list, in one pass and constant memory."""
    summary = Summary()
    for each in scored:
        summary.images += 1
        summary.clamped += each.clamped
        if each.error is not None:
            summary.broken += 1
            summary.errors = [*summary.errors, each][:shown]
        elif each.score is None:
            summary.unparsed += 1
        else:
            summary.scored += 1
            summary.all = [*summary.all, each][: 2 * shown]
            # stable sorts: of equal values the first image stays first
            summary.best = sorted([*summary.best, each], key=_falling)[:shown]
            summary.worst = sorted([*summary.worst, each], key=lambda image: -_falling(image))[:shown]
            if each.spread is not None:
                summary.uncertain = sorted([*summary.uncertain, each], key=lambda it: -(it.spread or 0.0))[:shown]
    summary.all = sorted(summary.all, key=_falling) if summary.scored <= 2 * shown else []
    return summary


def print_summary(summary: Summary, console: Console) -> None:
    """Print counts and extremes; names are printed literally."""
    if summary.scored:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("", "image", "score", "spread", "parsed", "reasoning"):
            is_number = name in ("score", "spread", "parsed")
            table.add_column(
                name, justify="right" if is_number else "left", overflow="ellipsis" if is_number else "fold"
            )
        for heading, images in _groups(summary):
            for position, each in enumerate(images):
                table.add_row(heading if position == 0 else "", *_cells(each))
            table.add_section()
        console.print(table)
    for each in summary.errors:
        console.print(Text(printable(f"no score: {each.error}"), style="red"))
    if summary.broken > len(summary.errors):
        console.print(Text(f"… and {summary.broken - len(summary.errors)} more with an error", style="red"))
    counts = [f"{counted(summary.images, 'image')}: {summary.scored:,} scored"]
    for count, what in (
        (summary.unparsed, "without a score in any answer"),
        (summary.broken, "unreadable"),
        (summary.clamped, f"answer{'' if summary.clamped == 1 else 's'} clamped to the scale"),
    ):
        if count:
            counts.append(f"{count:,} {what}")
    console.print(Text(", ".join(counts)))


def _groups(summary: Summary) -> list[tuple[str, list[ScoredImage]]]:
    if summary.all:
        return [("all", summary.all)]
    groups = [("best", summary.best), ("worst", summary.worst), ("least certain", summary.uncertain)]
    return [(heading, images) for heading, images in groups if images]


def _falling(each: ScoredImage) -> float:
    return -(each.score or 0.0)


def _cells(each: ScoredImage) -> list[Text]:
    reasoning = " ".join((each.reasoning or "").split())
    parsed = f"{each.parse_rate or 0:.0%}"
    shortened = printable(reasoning[:120]) + "…" * (len(reasoning) > 120)
    return [
        Text(text)
        for text in (printable(each.image), number(each.score, 2), number(each.spread, 2), parsed, shortened)
    ]
