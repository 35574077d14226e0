"""What a prepared folder says of itself: the result for cards and terminals, and the record of what was asked."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .arrow_folder import refuse_taken
from .faults import Fault

CARD_FILE = "README.md"
RECORD_FILE = "prepare.json"
FAULTS_FILE = "faults.csv"


@dataclass
class Preparation:
    """
    What was prepared, for cards and terminals.

    Args:
        out (`Path`):
            The folder.
        splits (`dict[str, dict]`):
            By split: `rows`, `references`, `mos`, `mos_raw` and `mos_std` (lowest, mean, highest) and `sha256`, over
            the rows' image hashes and MOS.
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


def finished(out: Path, request: dict, allowed: Mapping[str, int]) -> Preparation | None:
    """
    Tells whether the same command has made the folder already.

    Args:
        out (`Path`):
            The folder.
        request (`dict`):
            What the command asks for.
        allowed (`Mapping[str, int]`):
            How many faults of each kind it permits.

    Returns:
        [`Preparation`] or `None`: `None` where the folder is missing or empty.

    Raises:
        `FileExistsError`: The folder holds something else, or was made with faults that are not permitted now.
    """
    try:
        record = json.loads((out / RECORD_FILE).read_text(encoding="utf-8"))
        made = dict(record["request"])
    except (OSError, ValueError, TypeError, KeyError):
        refuse_taken(out)
        return None
    if made != request:
        changed = [key for key in request if made.get(key) != request[key]]
        raise FileExistsError(
            f"{out} was made with another {', '.join(changed) or 'request'}, and nothing in it is overwritten: name "
            "another folder by --out, or remove it."
        )
    faults = [Fault(*fault) for fault in record["faults"]]
    counts = Counter(fault.kind for fault in faults)
    over = [f"{count} {kind}" for kind, count in counts.items() if count > allowed.get(kind, 0)]
    if over:
        raise FileExistsError(
            f"{out} was made with faults that this command does not permit ({', '.join(over)}; they are listed in "
            f"{out / FAULTS_FILE}): permit them, name another folder by --out, or remove it."
        )
    return Preparation(out, record["splits"], faults, record["notes"], existed=True)


def file_hash(path: Path) -> str:
    """SHA-256 of a file; of a folder over its files with their names."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for inner in sorted(inner for inner in path.rglob("*") if inner.is_file()):
        digest.update(f"{inner.relative_to(path)} {file_hash(inner)}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
