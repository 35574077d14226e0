"""What the review page shows: pairs of a folder, filtered and ordered, and the decisions about them."""

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.compute as pc
from PIL import Image

from ..data.degradations import parts_of
from .decisions import PairKey, append_decision, read_decisions
from .manifest import read_manifest
from .source import leads_out, open_source, read_picture

ANY = "any"
STATES = ("undecided", "all", "accepted", "rejected")
ORDERS = ("mildest first", "in order")
MAX_SIDE = 2000
"""Longest side at which a picture is sent to the browser, in pixels."""

_COLUMNS = [
    "split",
    "row",
    "image_id",
    "dataset",
    "verdict",
    "kept",
    "stage",
    "operation",
    "ssim",
    "psnr",
    "parameters",
    "width",
    "height",
    "pixel_hash",
    "degraded_pixel_hash",
    "first_operation",
    "first_ssim",
    "first_psnr",
    "first_reason",
    "judge",
    "judge_answer",
]


@dataclass(frozen=True)
class Filters:
    """
    Which pairs are shown.

    Args:
        state (`str`):
            One of `STATES`.
        kind (`str`), severity (`str`), verdict (`str`), dataset (`str`):
            A value, or `ANY`.
        order (`str`):
            One of `ORDERS`.
    """

    state: str = "undecided"
    kind: str = ANY
    severity: str = ANY
    verdict: str = ANY
    dataset: str = ANY
    order: str = "mildest first"


class Shown(NamedTuple):
    """
    The two pictures of a pair as the page shows them.

    Args:
        original (`PIL.Image.Image` or `None`), view (`PIL.Image.Image` or `None`):
            RGB, of one size; `None` where they can't be shown.
        problem (`str` or `None`):
            Why not.
    """

    original: Image.Image | None
    view: Image.Image | None
    problem: str | None


class ReviewData:
    """
    The pairs of a folder.

    Args:
        folder (`str` or `os.PathLike`):
            What `q-hawkeye pair` wrote.
        decisions (`str` or `os.PathLike`):
            File of decisions.
        follow_links (`bool`, *optional*, defaults to `False`):
            Whether originals behind symbolic links that leave their folder are shown.

    Raises:
        `FileNotFoundError`: There is no such folder, or no manifest in it.
        `ValueError`: It has no pair to look at.
    """

    def __init__(self, folder: str | os.PathLike, decisions: str | os.PathLike, *, follow_links: bool = False):
        self.folder, self.path, self.follow_links = Path(folder), Path(decisions), follow_links
        manifest = read_manifest(folder, _COLUMNS)
        manifest = manifest.filter(pc.field("kept"))
        if len(manifest) == 0:
            raise ValueError(f"{folder} has no pair to look at: none of its rows has a degraded view.")
        self.source = open_source(folder)
        self.pairs: list[dict[str, Any]] = manifest.to_pylist()
        self.by_id = {str(number): pair for number, pair in enumerate(self.pairs)}
        for pair in self.pairs:
            pair["parts"] = parts_of(pair["operation"])
        self.decided = read_decisions(self.path)
        self._lock = threading.Lock()

    def choices(self, name: str) -> list[str]:
        """The values that a filter offers, `ANY` first."""
        if name == "kind":
            values = {part.kind for pair in self.pairs for part in pair["parts"]}
        elif name == "severity":
            values = {str(part.level) for pair in self.pairs for part in pair["parts"]}
        else:
            values = {pair[name] for pair in self.pairs if pair[name] is not None}
        return [ANY, *sorted(values)]

    def matching(self, filters: Filters) -> list[str]:
        """The ids of the pairs that the filters let through, in their order."""
        ids = [name for name, pair in self.by_id.items() if self._passes(pair, filters)]
        if filters.order == "mildest first":
            ids.sort(key=lambda name: -_mildness(self.by_id[name]))
        return ids

    def next_id(self, current: str, filters: Filters, step: int = 1) -> str:
        """The pair after (or before) another one with these filters, around the end; empty where there is none."""
        every = self.matching(Filters(**{**vars(filters), "state": "all"}))  # the current one may have left the filter
        wanted = set(self.matching(filters)) - ({current} if filters.state != "all" else set())
        if current in every:
            position = every.index(current)
            every = (
                every[position + 1 :] + every[: position + 1]
                if step > 0
                else every[:position][::-1] + every[position:][::-1]
            )
        return next((name for name in every if name in wanted), "")

    def state(self, name: str) -> str | None:
        """What was decided about a pair: `accept`, `reject` or nothing."""
        return self.decided.get(_key(self.by_id[name]))

    def decide(self, name: str, decision: str) -> None:
        """Writes a decision down; it is on the disk when this returns."""
        pair = self.by_id[name]
        described = {column: pair[column] for column in ("image_id", "split", "row", "operation")}
        with self._lock:
            append_decision(self.path, _key(pair), decision, **described)
            self.decided.pop(_key(pair), None)
            if decision != "undo":
                self.decided[_key(pair)] = decision

    def undo(self) -> str:
        """Takes the last decision about a pair of this folder back; returns its id, empty where there is none."""
        names = {_key(pair): name for name, pair in self.by_id.items()}
        name = next((names[key] for key in reversed(list(self.decided)) if key in names), "")
        if name:
            self.decide(name, "undo")
        return name

    def counts(self) -> dict[str, int]:
        """How many pairs there are and how many were accepted and rejected."""
        states = [self.decided.get(_key(pair)) for pair in self.pairs]
        return {"all": len(states), "accepted": states.count("accept"), "rejected": states.count("reject")}

    def pictures(self, name: str) -> Shown:
        """Reads both pictures of a pair and makes sure that they are those that the manifest speaks of."""
        pair = self.by_id[name]
        row = self.source[pair["split"]].select_columns(["image", "degraded_image"]).with_format("arrow")
        values = row[pair["row"] : pair["row"] + 1]
        original, view = (values.column(column)[0].as_py() for column in ("image", "degraded_image"))
        target = leads_out(original["path"]) if not original["bytes"] and original["path"] else None
        if target is not None and not self.follow_links:
            return Shown(
                None, None, f"The original is a symbolic link out of its folder, to {target}: see --follow-links."
            )
        try:
            pictures = [read_picture(value) for value in (original, view)]
        except (OSError, ValueError, MemoryError) as error:
            return Shown(None, None, str(error))
        if tuple(picture.pixel_hash for picture in pictures) != _key(pair):
            return Shown(None, None, "The original has changed since the pair was made: make the pairs again.")
        left, right = (_fitted(Image.fromarray(picture.array)) for picture in pictures)
        return Shown(left, right, None)

    def _passes(self, pair: dict[str, Any], filters: Filters) -> bool:
        decision = self.decided.get(_key(pair))
        state = {None: "undecided", "accept": "accepted", "reject": "rejected"}[decision]
        if filters.state not in ("all", state):
            return False
        parts = pair["parts"]
        return (
            (filters.kind == ANY or any(part.kind == filters.kind for part in parts))
            and (filters.severity == ANY or any(str(part.level) == filters.severity for part in parts))
            and filters.verdict in (ANY, pair["verdict"])
            and filters.dataset in (ANY, pair["dataset"])
        )


def _key(pair: dict[str, Any]) -> PairKey:
    return PairKey(pair["pixel_hash"], pair["degraded_pixel_hash"])


def _mildness(pair: dict[str, Any]) -> float:
    # SSIM first; pictures too small for it by PSNR, on a scale of about the same range.
    return pair["ssim"] if pair["ssim"] is not None else min(pair["psnr"], 50.0) / 50.0


def _fitted(image: Image.Image) -> Image.Image:
    if max(image.size) > MAX_SIDE:
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return image
