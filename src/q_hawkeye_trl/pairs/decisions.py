"""What people decided about pairs: one line a decision, of which the last one about a pair counts."""

import os
from datetime import UTC, datetime
from typing import Any, NamedTuple

from .journal import append_line, read_lines

DECISIONS = ("accept", "reject", "undo")
"""`undo` takes the decision before it back."""

DECISIONS_FILE = "decisions.jsonl"


class PairKey(NamedTuple):
    """
    Names a pair by what is to be seen, whatever its row or file: the hashes of both images' pixels.

    Args:
        pixel_hash (`str`):
            [`~data.degradations.pixel_hash`] of the original.
        degraded_pixel_hash (`str`):
            The same of its degraded view.
    """

    pixel_hash: str
    degraded_pixel_hash: str


def append_decision(path: str | os.PathLike, key: PairKey, decision: str, **described: object) -> None:
    """
    Appends a decision; it is on the disk when this returns.

    Args:
        path (`str` or `os.PathLike`):
            File of decisions.
        key ([`PairKey`]):
            The pair.
        decision (`str`):
            One of `DECISIONS`.
        described (`object`):
            What helps a person who reads the file: image_id, operation and the like.

    Raises:
        `ValueError`: Unknown decision.
        `OSError`: It can't be written.
    """
    if decision not in DECISIONS:
        raise ValueError(f"Unknown decision {decision!r}; the known ones are {', '.join(DECISIONS)}.")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    append_line(path, {"decision": decision, **key._asdict(), **described, "time": now})


def read_decisions(path: str | os.PathLike) -> dict[PairKey, str]:
    """
    Reads what stands in the end.

    Args:
        path (`str` or `os.PathLike`):
            File of decisions; a missing one counts as empty.

    Returns:
        `dict[PairKey, str]`: `"accept"` or `"reject"` by pair, without those that were taken back, in the order in
        which they were made.

    Raises:
        `ValueError`: A line is no decision; the message names it.
    """
    decided: dict[PairKey, str] = {}
    for number, line in enumerate(read_lines(path), 1):
        keys: list[Any] = [line.get(name) for name in PairKey._fields]
        decision = line.get("decision")
        if decision not in DECISIONS or not all(isinstance(key, str) and key for key in keys):
            raise ValueError(
                f"{path}, line {number}: expected `decision` ({', '.join(DECISIONS)}), `pixel_hash` and "
                f"`degraded_pixel_hash`, got {line!r}."
            )
        key = PairKey(*keys)
        decided.pop(key, None)  # a later one goes to the end, so that undo finds it there
        if decision != "undo":
            decided[key] = decision
    return decided
