"""The report on the terminal: one table a set, in the order of its questions."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..evaluation.presets import Preset
from ..evaluation.results import SetResult
from .wording import NAMES, QUOTED, comparison_rows, counted, interval, number, units, with_interval


def print_report(results: Sequence[SetResult], console: Console, preset: Preset | None = None) -> None:
    """
    Prints what was found, set by set.

    Args:
        results (`Sequence[SetResult]`):
            Results of the sets.
        console (`rich.console.Console`):
            Where to.
        preset ([`Preset`], *optional*):
            Protocol; its PLCC is marked.
    """
    for result in results:
        console.print()
        _print_figures(result, console, preset)
        if result.figures["spread"] is not None:
            _print_spread(result.figures["spread"], console)
        if result.by_distortion:
            _print_parts("distortion", result.by_distortion, console)
        if result.comparison is not None:
            _print_comparison(result.comparison, console)
        for warning in result.warnings:
            console.print(Text(f"! {warning}", style="yellow"))


def _print_figures(result: SetResult, console: Console, preset: Preset | None) -> None:
    figures, whole = result.figures, result.figures["with_failures"]
    images = counted(figures["images"], "image")
    title = f"{_printable(result.name)}: {images}, {figures['coverage']:.1%} with a score"
    table = Table(title=Text(title), title_justify="left", caption=Text(units(figures)), caption_justify="left")
    table.add_column("figure")
    for heading in ("scored images", "95%", "failures as 3", "95%"):
        table.add_column(heading, justify="right", no_wrap=heading == "95%")
    for name, heading in NAMES.items():
        marked = f"{heading} (as {preset.name})" if preset is not None and name == preset.plcc else heading
        cells = [number(figures[name]), interval(figures, name), number(whole[name]), interval(whole, name)]
        table.add_row(marked, *cells)
    console.print(table)
    if result.published:
        quoted = Table(title=QUOTED, title_justify="left", style="dim")
        for column in ("model", "PLCC", "SRCC", "source"):
            quoted.add_column(column, justify="right" if column in ("PLCC", "SRCC") else "left")
        for row in result.published:
            quoted.add_row(row.model, number(row.plcc), number(row.srcc), row.source, style="italic")
        console.print(quoted)


def _print_spread(spread: dict, console: Console) -> None:
    table = Table(title="Does the spread predict the error?", title_justify="left")
    table.add_column("least certain images left out")
    table.add_column("MAE of the rest", justify="right")
    for row in spread["risk_coverage"]:
        table.add_row(f"{row['rejected']:.0%}", number(row["mae"]))
    caption = (
        f"SRCC of spread and error {with_interval(spread, 'spread_srcc')}; {with_interval(spread, 'spread_gain', 2)} "
        "of the possible gain (0 is chance, 1 an order by the true error)"
    )
    console.print(table)
    console.print(Text(caption))


def _print_parts(what: str, parts: dict[str, dict], console: Console) -> None:
    table = Table(title=f"By {what}", title_justify="left")
    for column in (what, "images", "scored", "PLCC", "SRCC", "MAE", "bias"):
        table.add_column(column, justify="left" if column == what else "right")
    for name, part in parts.items():
        cells = [number(part[key]) for key in ("plcc", "srcc", "mae")] + [number(part["bias"], sign=True)]
        table.add_row(Text(_printable(name)), str(part["images"]), f"{part['coverage']:.0%}", *cells)
    console.print(table)


def _print_comparison(comparison: dict, console: Console) -> None:
    other = _printable(comparison["other"])
    table = Table(title=Text(f"Compared with {other}, failures as 3"), title_justify="left")
    for column in ("figure", "this", "other", "difference", "95%", ""):
        table.add_column(column, justify="left" if column in ("figure", "") else "right")
    for row in comparison_rows(comparison):
        table.add_row(*row)
    console.print(table)


def _printable(text: str) -> str:
    """Without the control characters that would move a terminal's cursor or colour it."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
