"""What a scoring run says at its end: counts, and the best, the worst and the least certain images."""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .scored import ScoredImage


@dataclass
class Summary:
    """
    Counts of a run and its extremes.

    Args:
        images (`int`):
            Images in all.
        scored (`int`):
            Images with a score.
        unparsed (`int`):
            Images that were read, of which no rollout had a score.
        broken (`int`):
            Images with an error.
        clamped (`int`):
            Rollouts beyond the scale.
        best, worst, uncertain (`list[ScoredImage]`):
            Images with the highest and the lowest score and with the largest spread, the most extreme first.
        all (`list[ScoredImage]`):
            Every image with a score, the best first, where two of these lists would hold them; otherwise empty.
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
    """
    Counts scores and finds the extremes in one pass, in memory that does not grow with the number of images.

    Args:
        scored (`Iterable[ScoredImage]`):
            Scores.
        shown (`int`, *optional*, defaults to `5`):
            Images in each list.

    Returns:
        [`Summary`]
    """
    summary = Summary()
    best, worst, uncertain = _Largest(shown), _Largest(shown), _Largest(shown)
    for each in scored:
        summary.images += 1
        summary.clamped += each.clamped
        if each.error is not None:
            summary.broken += 1
            if len(summary.errors) < shown:
                summary.errors.append(each)
        elif each.score is None:
            summary.unparsed += 1
        else:
            summary.scored += 1
            if summary.scored <= 2 * shown:
                summary.all.append(each)
            best.offer(each.score, each)
            worst.offer(-each.score, each)
            if each.spread is not None:
                uncertain.offer(each.spread, each)
    summary.all = sorted(summary.all, key=_falling) if summary.scored <= 2 * shown else []
    summary.best, summary.worst, summary.uncertain = best.ordered(), worst.ordered(), uncertain.ordered()
    return summary


def print_summary(summary: Summary, console: Console, shown: Callable[[ScoredImage], str] | None = None) -> None:
    """
    Prints counts and extremes. Names are printed as they are: what looks like markup is not taken for it.

    Args:
        summary ([`Summary`]):
            What to print.
        console (`rich.console.Console`):
            Where to.
        shown (`Callable[[ScoredImage], str]`, *optional*):
            What the last column says. By default the reasoning.
    """
    if summary.scored:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("", "image"):
            table.add_column(name, overflow="fold")
        for name in ("score", "spread", "parsed"):
            table.add_column(name, justify="right")
        table.add_column("reasoning", overflow="fold")
        for heading, images in _groups(summary):
            for number, each in enumerate(images):
                table.add_row(heading if number == 0 else "", *_cells(each))
            table.add_section()
        console.print(table)
    for each in summary.errors:
        console.print(Text(_printable(f"no score: {each.error}"), style="red"))
    if summary.broken > len(summary.errors):
        console.print(Text(f"… and {summary.broken - len(summary.errors)} more with an error", style="red"))
    counts = [f"{_images(summary.images)}: {summary.scored:,} scored"]
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
    spread = "–" if each.spread is None else f"{each.spread:.2f}"
    texts = (f"{each.score:.2f}", spread, f"{100 * (each.parse_rate or 0):.0f}%")
    return [
        Text(_printable(each.image)),
        *map(Text, texts),
        Text(_printable(reasoning[:120]) + "…" * (len(reasoning) > 120)),
    ]


def _printable(text: str) -> str:
    # a name may hold control characters, which a terminal would obey
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


class _Largest:
    """The few items with the largest values; of equal ones the first."""

    def __init__(self, count: int):
        self.count, self.seen = count, 0
        self.heap: list[tuple[float, int, ScoredImage]] = []

    def offer(self, value: float, item: ScoredImage) -> None:
        self.seen += 1
        entry = (value, -self.seen, item)
        if len(self.heap) < self.count:
            heapq.heappush(self.heap, entry)
        elif entry > self.heap[0]:
            heapq.heapreplace(self.heap, entry)

    def ordered(self) -> list[ScoredImage]:
        return [item for _, _, item in sorted(self.heap, key=lambda entry: entry[:2], reverse=True)]
