"""The report as Markdown, for a README, an issue or a paper's draft."""

import re
from collections.abc import Sequence

from ..evaluation.presets import Preset
from ..evaluation.results import SetResult
from .wording import EXPLANATION, NAMES, QUOTED, comparison_rows, counted, interval, number, units, with_interval


def markdown_report(results: Sequence[SetResult], *, title: str, preset: Preset | None = None) -> str:
    """
    Writes the report as Markdown. Names from outside stand in it with every special character escaped.

    Args:
        results (`Sequence[SetResult]`):
            Results of the sets.
        title (`str`):
            Heading.
        preset ([`Preset`], *optional*):
            Protocol.

    Returns:
        `str`
    """
    parts = [f"# {escape(title)}", EXPLANATION]
    if preset is not None:
        parts.append(
            f"Protocol `{preset.name}`: correlations with `{preset.target}`, {NAMES[preset.plcc]}; failures: "
            f"{preset.failures}. {preset.source}."
        )
    parts.append(summary_table(results))
    for result in results:
        parts += _one_set(result)
    return "\n\n".join(parts) + "\n"


def summary_table(results: Sequence[SetResult]) -> str:
    """All sets in one table, a row each."""
    rows = []
    for result in results:
        figures = result.figures
        cells = [with_interval(figures, name) for name in NAMES]
        rows.append([escape(result.name), str(figures["images"]), f"{figures['coverage']:.1%}", *cells])
    return _table(["set", "images", "scored", *NAMES.values()], rows)


def escape(text: str) -> str:
    """Text that Markdown, and the HTML in it, show as it is, on one line."""
    text = re.sub(r"[\s\x00-\x1f\x7f]+", " ", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", text)


def _one_set(result: SetResult) -> list[str]:
    figures, whole = result.figures, result.figures["with_failures"]
    rows = [
        [heading, number(figures[name]), interval(figures, name), number(whole[name]), interval(whole, name)]
        for name, heading in NAMES.items()
    ]
    parts = [
        f"## {escape(result.name)}",
        f"{counted(figures['images'], 'image')}, {figures['coverage']:.1%} with a score. {units(figures)}.",
        *(f"> {escape(warning)}" for warning in result.warnings),
        _table(["figure", "scored images", "95%", "failures as 3", "95%"], rows),
    ]
    if result.published:
        rows = [
            [f"*{escape(row.model)}*", number(row.plcc), number(row.srcc), escape(row.source)]
            for row in result.published
        ]
        parts += [f"{QUOTED}:", _table(["model", "PLCC", "SRCC", "source"], rows)]
    spread = figures["spread"]
    if spread is not None:
        shares = [f"{row['rejected']:.0%}" for row in spread["risk_coverage"]]
        srcc, gain = with_interval(spread, "spread_srcc"), with_interval(spread, "spread_gain", 2)
        parts += [
            f"Spread against error: SRCC {srcc}, {gain} of the possible gain.",
            "MAE after leaving out the least certain images:",
            _table(shares, [[number(row["mae"]) for row in spread["risk_coverage"]]]),
        ]
    for what, pieces in (("distortion", result.by_distortion), ("reference", result.by_group)):
        if pieces:
            rows = [
                [escape(name), str(part["images"]), f"{part['coverage']:.0%}"]
                + [number(part[key]) for key in ("plcc", "srcc", "mae")]
                + [number(part["bias"], sign=True)]
                for name, part in pieces.items()
            ]
            parts.append(_table([what, "images", "scored", "PLCC", "SRCC", "MAE", "bias"], rows))
    if result.comparison is not None:
        parts += _comparison(result.comparison)
    return parts


def _comparison(comparison: dict) -> list[str]:
    return [
        f"Compared with {escape(comparison['other'])}, paired, failures as 3:",
        _table(["figure", "this", "other", "difference", "95%", ""], comparison_rows(comparison)),
    ]


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
