"""The card of a folder of pairs, README.md."""

import os

from .manifest import VERDICTS, count_values, iterate_manifest


def card_text(manifest: str | os.PathLike, settings: dict, source_card: str | None) -> str:
    """
    Writes the card.

    Args:
        manifest (`str` or `os.PathLike`):
            The manifest.
        settings (`dict`):
            Settings as [`PairSettings.identity`] gives them.
        source_card (`str` or `None`):
            The card of the data that the pairs were made of.

    Returns:
        `str`: Markdown.
    """
    verdicts = count_values(iterate_manifest(manifest, ["verdict"]), "verdict")
    operations = count_values(iterate_manifest(manifest, ["operation"]), "operation")
    lines = ["# Degraded pairs", ""]
    lines += [
        "Made by `q-hawkeye pair`. `datasets.load_from_disk` reads the folder: the rows of the data with one column",
        "more, `degraded_image` (PNG, embedded; empty in a row without a pair). `pairs.parquet` says for every row",
        "what was done, with which parameters and seed, hashes, distances and verdict.",
        "",
        "| verdict | rows | meaning |",
        "|---|---|---|",
        *(f"| {verdict} | {count:,} | {VERDICTS[verdict]} |" for verdict, count in verdicts.items()),
        "",
        "| degradation | rows |",
        "|---|---|",
        *(f"| `{name}` | {count:,} |" for name, count in operations.items()),
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {name} | {_shown(value)} |" for name, value in settings.items() if value is not None),
        "",
    ]
    if source_card is not None:
        lines += ["## The data that they were made of", "", "Their own card:", "", *_quoted(source_card), ""]
    return "\n".join(lines)


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _quoted(text: str) -> list[str]:
    return [f"> {line}".rstrip() for line in text.splitlines()]
