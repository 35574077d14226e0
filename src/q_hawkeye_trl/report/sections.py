"""The report of a set as tables, printed on the terminal or written as Markdown; [`~report.page`] writes HTML."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..evaluation.public_sets import Preset
from ..evaluation.results import SetResult
from ..wording import counted, escape, interval, markdown_table, number, printable, with_interval

NAMES = {
    "plcc": "PLCC",
    "plcc_fitted": "PLCC, fitted",
    "srcc": "SRCC",
    "krcc": "KRCC",
    "rmse": "RMSE",
    "mae": "MAE",
}
"""Figures in the order of the tables."""

EXPLANATION = (
    "PLCC is computed from the scores as they are; “PLCC, fitted” after a 4-parameter logistic fit. The two are not "
    "comparable. RMSE and MAE are in points of the scale of 1 to 5."
)

_TEXT_COLUMNS = ("figure", "model", "source", "distortion", "reference", "least certain left out", "verdict")


@dataclass(frozen=True)
class Section:
    """
    One table of a report; its cells are text, not escaped.

    Args:
        title (`str`):
            Heading; empty for the figures of the set.
        header (`list[str]`), rows (`list[list[str]]`):
            Its cells.
        note (`str`, *optional*):
            Sentence that belongs to it.
        kind (`str`, *optional*):
            `"quoted"` for figures of others, `"part"` for a table of the parts of a set.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""
    kind: str = ""

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds numbers."""
        return [name not in _TEXT_COLUMNS for name in self.header]


def summary_line(figures: Mapping) -> str:
    """Say how many images there are, how many have a score, and what was resampled."""
    units = counted(figures["units"], "reference" if figures["resampled"] == "group" else "image")
    return (
        f"{counted(figures['images'], 'image')}, {figures['coverage']:.1%} with a score. "
        f"95% intervals over {units}, {figures['draws']} draws, seed {figures['seed']}."
    )


def protocol_line(preset: Preset) -> str:
    """Describe a protocol in one line."""
    return (
        f"Protocol {preset.name}: correlations with {preset.target}, {NAMES[preset.plcc]}; failures: "
        f"{preset.failures}. {preset.source}."
    )


def sections_of(result: SetResult, preset: Preset | None = None) -> Iterator[Section]:
    """Yield the tables of a set in their order; the protocol's PLCC is marked."""
    figures, whole = result.figures, result.figures["with_failures"]
    rows = []
    for key, name in NAMES.items():
        name = f"{name} (as {preset.name})" if preset is not None and key == preset.plcc else name
        rows.append([name, *(cell for part in (figures, whole) for cell in (number(part[key]), interval(part, key)))])
    yield Section("", ["figure", "scored images", "95%", "failures as 3", "95%"], rows)
    if result.published:
        quoted = [[row.model, number(row.plcc), number(row.srcc), row.source] for row in result.published]
        title = "Quoted, not measured here: models trained on KonIQ-10k alone, each by its paper's protocol"
        yield Section(title, ["model", "PLCC", "SRCC", "source"], quoted, kind="quoted")
    if figures["spread"] is not None:
        yield _spread_section(figures["spread"])
    if result.comparison is not None:
        yield _comparison_section(result.comparison)
    for what, parts in (("distortion", result.by_distortion), ("reference", result.by_group)):
        if parts:
            yield _parts_section(what, parts)


def print_report(results: Sequence[SetResult], console: Console, preset: Preset | None = None) -> None:
    """Print the report, without the table by reference; names from outside are printed literally."""
    for result in results:
        console.print()
        console.print(Text(f"{printable(result.name)}: {summary_line(result.figures)}", style="bold"))
        for section in sections_of(result, preset):
            if section.header[0] == "reference":
                continue
            title = Text(printable(section.title)) if section.title else None
            style = "dim" if section.kind == "quoted" else ""
            table = Table(title=title, title_justify="left", style=style, row_styles=[style])
            for name, is_number in zip(section.header, section.numeric, strict=True):
                table.add_column(name, justify="right" if is_number else "left", no_wrap=name == "95%")
            for row in section.rows:
                table.add_row(*(Text(printable(cell)) for cell in row))
            console.print(table)
            if section.note:
                console.print(Text(section.note))
        for warning in result.warnings:
            console.print(Text(f"! {printable(warning)}", style="yellow"))


def markdown_report(results: Sequence[SetResult], *, title: str, preset: Preset | None = None) -> str:
    """Write the report as Markdown, for a README, an issue or a paper's draft; names from outside are escaped."""
    parts = [f"# {escape(title)}", EXPLANATION]
    if preset is not None:
        parts.append(escape(protocol_line(preset)))
    parts.append(summary_table(results))
    for result in results:
        parts += [f"## {escape(result.name)}", summary_line(result.figures)]
        parts += [f"> {escape(warning)}" for warning in result.warnings]
        for section in sections_of(result, preset):
            if section.title:
                parts.append(f"### {escape(section.title)}")
            rows = [
                [cell if is_number else escape(cell) for cell, is_number in zip(row, section.numeric, strict=True)]
                for row in section.rows
            ]
            parts.append(markdown_table(section.header, rows))
            if section.note:
                parts.append(section.note)
    return "\n\n".join(parts) + "\n"


def summary_table(results: Sequence[SetResult]) -> str:
    """Write one Markdown table with a row per set."""
    rows = []
    for result in results:
        cells = [with_interval(result.figures, name) for name in NAMES]
        rows.append([escape(result.name), str(result.figures["images"]), f"{result.figures['coverage']:.1%}", *cells])
    return markdown_table(["set", "images", "scored", *NAMES.values()], rows)


def verdict(comparison: Mapping, name: str) -> str:
    """Say whether the interval of a difference shows a better or worse model."""
    low, high = comparison[f"{name}_low"], comparison[f"{name}_high"]
    if not (low > 0 or high < 0):
        return "no difference shown"
    better = low > 0 if name not in ("rmse", "mae") else high < 0
    return "better" if better else "worse"


def _spread_section(spread: Mapping) -> Section:
    shares, errors = zip(
        *((f"{row['rejected']:.0%}", number(row["mae"])) for row in spread["risk_coverage"]), strict=True
    )
    note = (
        f"SRCC of spread and absolute error {with_interval(spread, 'spread_srcc')}; "
        f"{with_interval(spread, 'spread_gain', 2)} of the possible gain (0 is a random order, 1 the order of the "
        f"true errors). Mean spread {number(spread['mean'], 2)} points."
    )
    title = "Does the spread predict the error?"
    return Section(title, ["least certain left out", *shares], [["MAE of the rest", *errors]], note)


def _comparison_section(comparison: Mapping) -> Section:
    rows = [
        [
            heading,
            number(comparison[f"{name}_first"]),
            number(comparison[f"{name}_second"]),
            number(comparison[name], sign=True),
            interval(comparison, name, sign=True),
            verdict(comparison, name),
        ]
        for name, heading in NAMES.items()
    ]
    note = "Both models on the same draws; a missing score counts as 3."
    return Section(
        f"Compared with {comparison['other']}", ["figure", "this", "other", "difference", "95%", "verdict"], rows, note
    )


def _parts_section(what: str, parts: Mapping[str, Mapping]) -> Section:
    rows = [
        [
            name,
            str(part["images"]),
            f"{part['coverage']:.0%}",
            *(number(part[key]) for key in ("plcc", "srcc", "mae")),
            number(part["bias"], sign=True),
        ]
        for name, part in parts.items()
    ]
    return Section(f"By {what}", [what, "images", "scored", "PLCC", "SRCC", "MAE", "bias"], rows, kind="part")
