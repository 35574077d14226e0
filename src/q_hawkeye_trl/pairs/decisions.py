"""People's decisions about pairs: their file, and the pairs to decide about with filters and pictures."""

import os
import threading
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.compute as pc
from PIL import Image

from ..data.degradations import parts_of
from ..io.journal import append_line, read_lines
from .pair_manifest import PairKey, read_manifest
from .source import leads_out, open_source, read_picture

DECISIONS = ("accept", "reject", "undo")
"""Decisions; `undo` reverts the one before it about the same pair."""

DECISIONS_FILE = "decisions.jsonl"

ANY = "any"
STATES = ("undecided", "all", "accepted", "rejected")
ORDERS = ("mildest first", "in order")

MAX_SIDE = 2000
"""Longest side of a picture that is sent to the browser, in pixels."""


def append_decision(path: str | os.PathLike, key: PairKey, decision: str, **described: object) -> None:
    """Append a decision, with columns that describe the pair to readers; it is on disk when this returns."""
    if decision not in DECISIONS:
        raise ValueError(f"Unknown decision {decision!r}; expected one of: {', '.join(DECISIONS)}.")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    append_line(path, {"decision": decision, **key._asdict(), **described, "time": now})


def read_decisions(path: str | os.PathLike) -> dict[PairKey, str]:
    """Return the decisions in force, `"accept"` or `"reject"`, by pair, oldest first."""
    decided: dict[PairKey, str] = {}
    for line, number, _ in read_lines(path):
        hashes: list[Any] = [line.get(name) for name in PairKey._fields]
        decision = line.get("decision")
        if decision not in DECISIONS or not all(isinstance(value, str) and value for value in hashes):
            raise ValueError(
                f"{path}, line {number}: expected `decision` ({', '.join(DECISIONS)}), `pixel_hash` and "
                f"`degraded_pixel_hash`, got {line!r}; remove the line."
            )
        _record(decided, PairKey(*hashes), decision)
    return decided


def _record(decided: dict[PairKey, str], key: PairKey, decision: str) -> None:
    decided.pop(key, None)  # a later decision moves to the end, where `ReviewData.undo` finds it
    if decision != "undo":
        decided[key] = decision


@dataclass(frozen=True)
class Filters:
    """Which pairs are shown, and in which order: a value for each name, or `ANY`."""

    state: str = "undecided"
    kind: str = ANY
    severity: str = ANY
    verdict: str = ANY
    dataset: str = ANY
    order: str = ORDERS[0]


class Shown(NamedTuple):
    """The two pictures of a pair as RGB images of one size, or the problem with them."""

    original: Image.Image | None
    view: Image.Image | None
    problem: str | None = None


class ReviewData:
    """The pairs of a folder, by id, and the decisions about them."""

    def __init__(self, folder: str | os.PathLike, decisions: str | os.PathLike, *, follow_links: bool = False):
        self.folder, self.path, self.follow_links = Path(folder), Path(decisions), follow_links
        pairs = read_manifest(folder).filter(pc.field("kept")).to_pylist()
        if not pairs:
            raise ValueError(f"{folder} has no pair to review: none of its rows has a degraded view.")
        self.source = open_source(folder)
        for pair in pairs:
            pair["parts"] = parts_of(pair["operation"])
        self.pairs: dict[str, dict[str, Any]] = {str(number): pair for number, pair in enumerate(pairs)}
        self.decided = read_decisions(self.path)
        self._lock = threading.Lock()

    def choices(self, name: str) -> list[str]:
        """The values that a filter offers, `ANY` first."""
        values = (value for pair in self.pairs.values() for value in _values(pair, name))
        return [ANY, *sorted({value for value in values if value is not None})]

    def matching(self, filters: Filters) -> list[str]:
        """The ids of the pairs that pass the filters, in their order."""
        ids = [name for name in self.pairs if self._passes(name, filters)]
        if filters.order == ORDERS[0]:
            ids.sort(key=lambda name: -_mildness(self.pairs[name]))
        return ids

    def next_id(self, current: str, filters: Filters, step: int = 1) -> str:
        """The next pair (or the one before) that passes the filters, around the end; empty if there is none."""
        every = self.matching(replace(filters, state="all"))  # the current one may no longer pass
        wanted = set(self.matching(filters)) - ({current} if filters.state != "all" else set())
        if step < 0:
            every.reverse()
        if current in every:
            position = every.index(current) + 1
            every = every[position:] + every[:position]
        return next((name for name in every if name in wanted), "")

    def state(self, name: str) -> str:
        """Whether a pair is accepted, rejected or undecided."""
        decision = self.decided.get(PairKey.of(self.pairs[name]))
        return {None: "undecided", "accept": "accepted", "reject": "rejected"}[decision]

    def decide(self, name: str, decision: str) -> None:
        """Record a decision; it is on disk when this returns."""
        pair = self.pairs[name]
        described = {column: pair[column] for column in ("image_id", "split", "row", "operation")}
        with self._lock:
            append_decision(self.path, PairKey.of(pair), decision, **described)
            _record(self.decided, PairKey.of(pair), decision)

    def undo(self) -> str:
        """Revert the last decision about a pair of this folder and return its id; empty if there is none."""
        names = {PairKey.of(pair): name for name, pair in self.pairs.items()}
        name = next((names[key] for key in reversed(list(self.decided)) if key in names), "")
        if name:
            self.decide(name, "undo")
        return name

    def counts(self) -> dict[str, int]:
        """The number of pairs, accepted and rejected pairs."""
        states = [self.state(name) for name in self.pairs]
        return {"all": len(states), "accepted": states.count("accepted"), "rejected": states.count("rejected")}

    def pictures(self, name: str) -> Shown:
        """Read both pictures of a pair and check them against the hashes of the manifest."""
        pair = self.pairs[name]
        rows = self.source[pair["split"]].select_columns(["image", "degraded_image"]).with_format("arrow")
        (row,) = rows[pair["row"] : pair["row"] + 1].to_pylist()
        original = row["image"]
        target = leads_out(original["path"]) if not original["bytes"] and original["path"] else None
        if target is not None and not self.follow_links:
            problem = f"The original is a link out of its folder, to {target}: pass --follow-links to show it."
            return Shown(None, None, problem)
        try:
            pictures = [read_picture(row[column]) for column in ("image", "degraded_image")]
        except (OSError, ValueError, MemoryError) as error:
            return Shown(None, None, str(error))
        if tuple(picture.pixel_hash for picture in pictures) != PairKey.of(pair):
            return Shown(None, None, "The original has changed since the pair was made: make the pairs again.")
        images = [Image.fromarray(picture.array) for picture in pictures]
        for image in images:
            image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        return Shown(images[0], images[1])

    def _passes(self, name: str, filters: Filters) -> bool:
        if filters.state not in ("all", self.state(name)):
            return False
        wanted = {column: getattr(filters, column) for column in ("kind", "severity", "verdict", "dataset")}
        return all(value == ANY or value in _values(self.pairs[name], column) for column, value in wanted.items())


def _values(pair: dict[str, Any], name: str) -> set[str | None]:
    """The values of a pair that a filter of this name selects."""
    if name == "kind":
        return {part.kind for part in pair["parts"]}
    return {str(part.level) for part in pair["parts"]} if name == "severity" else {pair[name]}


def _mildness(pair: dict[str, Any]) -> float:
    # SSIM; by PSNR, on a similar scale, for pictures smaller than its window
    return pair["ssim"] if pair["ssim"] is not None else min(pair["psnr"], 50.0) / 50.0
