"""The card (README.md) of prepared data: what it is, how its MOS and splits were made, counts, ranges and hashes."""

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData

from ..wording import markdown_table
from .faults import FAULTS, FAULTS_FILE, Fault
from .labels import LabelSet


@dataclass
class Preparation:
    """
    What was prepared, for cards and terminals.

    Args:
        out (`Path`):
            The folder.
        splits (`dict[str, dict]`):
            By split: `rows`, `sets` (rows by set), `references`, `mos`, `mos_raw` and `mos_std` (lowest, mean,
            highest) and `sha256` of the rows' names, image hashes and MOS.
        faults (`list[Fault]`):
            Faults that were permitted.
        notes (`list[str]`):
            What a user should know.
        existed (`bool`):
            Whether the same command had made the folder before.
    """

    out: Path
    splits: dict[str, dict]
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    existed: bool = False


def prepared_card(labels: LabelSet, result: Preparation, request: Mapping[str, Any]) -> str:
    """Return the card of one prepared set as Markdown."""
    images = "copied into this folder" if request["embed"] else f"kept where they are, below {_plain(labels.folder)}"
    facts = [
        f"Released score: {_plain(labels.scores)}.",
        f"MOS (`mos_scale` = `{labels.scale}`): {labels.rule}.",
        "Standard deviations: `mos_std` in points of MOS, `mos_std_raw` as released; empty if the set has none.",
        f"Splits: {_split_rule(labels, request)}.",
        f"Images: {images}.",
    ]
    files = [f"`{_plain(path)}`, sha256 `{digest}`" for path, digest in list(request["labels"].items())[:20]]
    files += [f"and {len(request['labels']) - 20} more, in `prepare.json`"] if len(request["labels"]) > 20 else []
    return _card(labels.name, "prepared", facts, result, ["## Label files", "", *_listed(files), ""])


def mix_card(result: Preparation) -> str:
    """Return the card of several sets in one folder as Markdown."""
    sets = sorted({name for split in result.splits.values() for name in split["sets"]})
    facts = [
        "Each row's `dataset` names its set. MOS of different sets have no common order: compare within a set only.",
        "How MOS, splits and spreads were made is in the card of each set.",
    ]
    rows = [[name, *(str(split["sets"].get(each, 0)) for each in sets)] for name, split in result.splits.items()]
    counts = markdown_table(["split", *map(_plain, sets)], rows)
    return _card(" + ".join(sets), "mixed", facts, result, [counts, ""])


def _card(name: str, verb: str, facts: Sequence[str], result: Preparation, more: Sequence[str]) -> str:
    counts = Counter(fault.kind for fault in result.faults)
    faults = [f"{counts[kind]} {words}" for kind, words in FAULTS.items() if counts[kind]]
    packages = ", ".join(f"{each} {version(each)}" for each in ("q-hawkeye-trl", "datasets", "pillow", "numpy"))
    head = DatasetCardData(pretty_name=name, tags=["image-quality-assessment", "q-hawkeye-trl"]).to_yaml()
    permitted = ["## Permitted faults", "", *_listed(faults), "", f"Each is listed in `{FAULTS_FILE}`.", ""]
    lines = [
        *("---", head, "---", "", f"# {_plain(name)}, {verb} for q_hawkeye_trl", ""),
        *_listed([*facts, *map(_plain, result.notes)]),
        *("", *_counts(result.splits), ""),
        *(permitted if faults else []),
        *more,
        *("## Versions", "", f"{packages}, Python {platform.python_version()}", ""),
    ]
    return "\n".join(lines)


def _counts(splits: Mapping[str, Mapping[str, Any]]) -> list[str]:
    header = [
        "split",
        "images",
        "references",
        "MOS (lowest / mean / highest)",
        "released score",
        "std (in MOS)",
        "hash",
    ]
    rows = [
        [
            *(name, str(split["rows"]), str(split["references"] or "none")),
            *(_range(split[key]) for key in ("mos", "mos_raw", "mos_std")),
            f"`{split['sha256'][:16]}`",
        ]
        for name, split in splits.items()
    ]
    legend = "std is in points of MOS; hash is of the rows' names, pixel hashes and MOS."
    return [markdown_table(header, rows), "", legend]


def _split_rule(labels: LabelSet, request: Mapping[str, Any]) -> str:
    if labels.rows[0].split is not None:
        return f"{_plain(labels.splits)}, kept as they are"
    shares = ":".join(f"{share:g}" for share in request["shares"])
    rule = f"drawn {_plain(labels.splits)} and by content (images of the same pixels are kept together)"
    return f"{rule}, seed {request['seed']}, shares {shares}"


def _range(values: list[float] | None) -> str:
    return "none" if values is None else " / ".join(f"{value:.4g}" for value in values)


def _listed(lines: Sequence[str]) -> list[str]:
    return [f"- {line}" for line in lines]


def _plain(text: object) -> str:
    """Return text from outside in one line of Markdown."""
    return str(text).replace("\n", " ").replace("|", "\\|").replace("`", "'").replace('"', "'")
