"""Numbers, counts and names as text: in tables, on the terminal, in Markdown and in HTML."""

import math
import re
from collections.abc import Mapping

FIGURES = {
    "srcc_sampled": "SRCC, sampled",
    "plcc_sampled": "PLCC, sampled",
    "srcc_greedy": "SRCC, greedy",
    "plcc_greedy": "PLCC, greedy",
    "parse_rate": "parse rate",
    "spread": "mean spread of the rollouts",
}
"""Held-out figures in the order of the tables, with their names."""

DASH = "–"
"""An undefined figure."""


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """Write a figure in plain digits, or a dash if it is undefined."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:{'+' if sign else ''}.{digits}f}"


def interval(figures: Mapping, name: str, digits: int = 3, sign: bool = False) -> str:
    """Write the interval of a figure in brackets, or a dash if it is undefined."""
    ends = [number(figures[f"{name}_{end}"], digits, sign) for end in ("low", "high")]
    return DASH if ends[0] == DASH else f"[{', '.join(ends)}]"


def with_interval(figures: Mapping, name: str, digits: int = 3) -> str:
    """Write a figure and its interval, or one dash if the figure is undefined."""
    value = number(figures[name], digits)
    return value if value == DASH else f"{value} {interval(figures, name, digits)}"


def counted(count: int, what: str) -> str:
    """Write a number of things, such as `1 image` or `2,000 images`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def printable(text: str) -> str:
    """Escape the control characters, which a terminal would obey."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def escape(text: str) -> str:
    """Escape a text so that Markdown, and the HTML in it, shows it literally, on one line."""
    text = re.sub(r"[\s\x00-\x1f\x7f]+", " ", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", text)


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """Write a Markdown table of cells that are escaped already."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows))


def before_after_rows(before: Mapping | None, after: Mapping) -> list[list[str]]:
    """Write the held-out figures, by the keys of `FIGURES`: name, before, after, change; a dash where unknown."""
    rows = []
    for key, name in FIGURES.items():
        start, end = (
            math.nan if figures is None or figures.get(key) is None else figures[key] for figures in (before, after)
        )
        rows.append([name, number(start), number(end), number(end - start, sign=True)])
    return rows


def before_after_table(before: Mapping | None, after: Mapping, images: int) -> str:
    """Write the held-out figures before and after training, over this number of images, as a plain text table."""
    rows = [[f"{images} held-out images", "before", "after", "change"], *before_after_rows(before, after)]
    lines = [f"{name:<28} {start:>8} {end:>8} {change:>8}" for name, start, end, change in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
