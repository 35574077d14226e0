"""The card (README.md) of prepared data: what it is, how its MOS and splits were made, counts, ranges and hashes."""

import platform
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from .faults import FAULTS
from .preparation import Preparation
from .readers.labels import LabelSet


def prepared_card(labels: LabelSet, result: Preparation, request: Mapping[str, Any]) -> str:
    """
    Writes the card of one prepared set.

    Args:
        labels ([`~data.readers.labels.LabelSet`]):
            The set.
        result ([`~data.preparation.Preparation`]):
            What became of it.
        request (`Mapping[str, Any]`):
            What was asked for.

    Returns:
        `str`: Markdown with a head that the Hub reads.
    """
    images = "copied into this folder" if request["embed"] else f"left where they are, below {_plain(labels.folder)}"
    lines = [
        *_head(labels.name),
        f"# {_plain(labels.name)}, prepared for q_hawkeye_trl",
        "",
        f"- Released score: {_plain(labels.scores)}.",
        f"- MOS (`mos_scale` = `{labels.scale}`): {labels.rule}.",
        "- Standard deviations: `mos_std` in points of MOS, `mos_std_raw` as released; empty where the set has none.",
        f"- Splits: {_split_rule(labels, request)}.",
        f"- Images: {images}.",
        *(f"- {_plain(note)}" for note in result.notes),
        "",
        *counts_table(result.splits),
        "",
        *_faults(result),
        "## Label files",
        "",
        *_files(request["labels"]),
        "",
        *versions_lines(),
    ]
    return "\n".join(lines) + "\n"


def counts_table(splits: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines of a Markdown table: counts, ranges and hash of each split."""
    lines = [
        "| split | images | references | MOS (lowest, mean, highest) | released score | std (in MOS) | sha256 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, split in splits.items():
        cells = [name, split["rows"], split["references"] or "none"]
        cells += [_range(split[key]) for key in ("mos", "mos_raw", "mos_std")]
        lines.append(f"| {' | '.join(map(str, cells))} | `{split['sha256'][:16]}` |")
    lines += ["", "sha256 is over the rows' names, pixel hashes and MOS, in order."]
    return lines


def versions_lines() -> list[str]:
    """Lines that name the software."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("q-hawkeye-trl", "datasets", "pillow", "numpy"))
    return ["## Versions", "", f"{packages}, Python {platform.python_version()}"]


def _head(name: str) -> list[str]:
    return [
        "---",
        f'pretty_name: "{_plain(name)}"',
        "tags:",
        "- image-quality-assessment",
        "- q-hawkeye-trl",
        "---",
        "",
    ]


def _split_rule(labels: LabelSet, request: Mapping[str, Any]) -> str:
    if labels.rows[0].split is not None:
        return f"{_plain(labels.splits)}, kept as they are"
    shares = ":".join(f"{share:g}" for share in request["shares"])
    return (
        f"drawn {_plain(labels.splits)} and by content (images of the same pixels stay together), seed "
        f"{request['seed']}, shares {shares}"
    )


def _faults(result: Preparation) -> list[str]:
    if not result.faults:
        return []
    counts = Counter(fault.kind for fault in result.faults)
    lines = [f"- {counts[kind]} {words}" for kind, words in FAULTS.items() if counts[kind]]
    return ["## Faults that were permitted", "", *lines, "", "Each is listed in `faults.csv`.", ""]


def _files(files: Mapping[str, str], shown: int = 20) -> list[str]:
    lines = [f"- `{_plain(path)}`, sha256 `{digest}`" for path, digest in list(files.items())[:shown]]
    return lines + ([f"- and {len(files) - shown} more, in `prepare.json`"] if len(files) > shown else [])


def _range(values: list[float] | None) -> str:
    return "none" if values is None else ", ".join(f"{value:.4g}" for value in values)


def _plain(text: object) -> str:
    """Text from outside in one line of Markdown."""
    return str(text).replace("\n", " ").replace("|", "\\|").replace("`", "'").replace('"', "'")


def mix_card(inputs: list[str], result: Preparation) -> str:
    """
    Writes the card of several sets in one folder.

    Args:
        inputs (`list[str]`):
            Folders of the sets.
        result ([`~data.preparation.Preparation`]):
            What became of them.

    Returns:
        `str`: Markdown with a head that the Hub reads.
    """
    sets = sorted({name for split in result.splits.values() for name in split["sets"]})
    lines = [
        *_head(" + ".join(sets)),
        f"# {_plain(' + '.join(sets))}, mixed for q_hawkeye_trl",
        "",
        "Each row's `dataset` names its set. MOS of different sets have no common order: compare within a set only.",
        "How MOS, splits and spreads were made is in the card of each:",
        "",
        *(f"- {_plain(note)}" for note in result.notes),
        "",
        f"| split | {' | '.join(map(_plain, sets))} |",
        "|---" * (len(sets) + 1) + "|",
        *(
            f"| {name} | {' | '.join(str(split['sets'].get(each, 0)) for each in sets)} |"
            for name, split in result.splits.items()
        ),
        "",
        *counts_table(result.splits),
        "",
        *_faults(result),
        *versions_lines(),
    ]
    return "\n".join(lines) + "\n"
