"""Make one pair: degrade, measure, ask the judge, strengthen if too mild, apply people's decision."""

import hashlib
import io
import json
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..data.degradations import (
    Step,
    apply_step,
    degradation_steps,
    draw_degradation,
    draw_second,
    pixel_hash,
    view_seed,
)
from .distance import Distance, measure_distance
from .judge import Judge, JudgeError, Verdict
from .pair_manifest import PairKey
from .pair_settings import PairSettings
from .source import Picture, read_picture


class SourceRow(NamedTuple):
    """A row of the data; with `record` and `view` (PNG) if the data are pairs already."""

    split: str
    row: int
    image_id: str
    dataset: str | None
    image: dict | None
    record: dict | None = None
    view: bytes | None = None

    @property
    def place(self) -> dict[str, Any]:
        """The columns of the manifest that identify the row."""
        return {"split": self.split, "row": self.row, "image_id": self.image_id, "dataset": self.dataset}


class Pair(NamedTuple):
    """The degraded view as PNG, `None` without one, and the line of the manifest."""

    png: bytes | None
    record: dict[str, Any]


class ViewError(Exception):
    """A degradation can't be applied to an image."""


@dataclass
class _View:
    array: np.ndarray
    operation: str
    seed: int
    steps: list[Step]
    distance: Distance
    digest: str
    verdict: str = "ok"
    reason: str | None = None  # why it is too mild: "distance" or "judge"
    answer: str | None = None
    error: str | None = None
    first: "_View | None" = None  # the view before it was strengthened


class PairMaker:
    """Makes pairs; a row gets the same pair in any process and order."""

    def __init__(
        self,
        settings: PairSettings,
        judge: Judge | None = None,
        verdicts: MutableMapping[PairKey, Verdict] | None = None,
        decisions: Mapping[PairKey, str] | None = None,
    ):
        self.settings, self.judge, self.decisions = settings, judge, decisions or {}
        self.verdicts = {} if verdicts is None else verdicts

    def make(self, row: SourceRow) -> Pair:
        """Make the pair of a row; errors of its image or of the judge are in the record."""
        if row.record is not None:
            return self._redecide(row, {**row.record, **row.place})
        try:
            picture = read_picture(row.image)
        except (OSError, ValueError, MemoryError) as error:
            return _failed(row.place, error)
        record = {**row.place, **picture.facts}
        try:
            return self._finish(picture, self._view(picture), record)
        except ViewError as error:
            return _failed(record, error)

    def _view(self, picture: Picture) -> _View:
        seed = view_seed(self.settings.seed, picture.pixel_hash, 0)
        view = _degraded(picture, draw_degradation(self.settings.degradations, seed), seed)
        self._assess(picture, view)
        return self._strengthened(picture, view, view.reason) if view.verdict == "too_mild" else view

    def _strengthened(self, picture: Picture, view: _View, reason: str | None) -> _View:
        """Return the view with a second degradation, or the view itself if there is none to add."""
        operation = draw_second(view.operation, self.settings.second, view.seed) if self.settings.second else None
        if operation is None:
            return view
        try:
            stronger = _degraded(picture, operation, view.seed, view)
        except ViewError as error:  # keep the weaker view
            view.error = str(error)
            return view
        view.reason = reason
        self._assess(picture, stronger)
        return stronger

    def _assess(self, picture: Picture, view: _View) -> None:
        """Set the verdict of a view: by distance, then by the judge."""
        ssim, psnr = view.distance
        if (ssim is None or ssim >= self.settings.mild_ssim) and psnr >= self.settings.mild_psnr:
            view.verdict, view.reason = "too_mild", "distance"
            return
        if self.judge is None:
            return
        key = PairKey(picture.pixel_hash, view.digest)
        try:
            if key not in self.verdicts:
                self.verdicts[key] = self.judge(Image.fromarray(picture.array), Image.fromarray(view.array))
        except JudgeError as error:
            view.verdict, view.error = "unjudged", str(error)
            return
        view.answer = self.verdicts[key].answer
        if not self.verdicts[key].different:
            view.verdict, view.reason = "too_mild", "judge"

    def _finish(self, picture: Picture, view: _View, record: dict[str, Any]) -> Pair:
        """Apply people's decision and the settings to a view."""
        decision = self.decisions.get(PairKey(picture.pixel_hash, view.digest))
        if decision == "reject" and self.settings.rejected == "strengthen":
            stronger = self._strengthened(picture, view, "person")
            if stronger is not view:  # another pair, which people may have decided about too
                view, decision = stronger, self.decisions.get(PairKey(picture.pixel_hash, stronger.digest))
        if decision is not None:
            view.verdict, view.error = ("accepted" if decision == "accept" else "rejected"), None
        kept = view.verdict != "rejected" and not (view.verdict == "too_mild" and self.settings.drop_mild)
        png = _png(view.array) if kept else None
        return Pair(png, {**record, **self._record(view), **_file_facts(png), "decision": decision})

    def _record(self, view: _View) -> dict[str, Any]:
        first = view.first
        steps = [{"kind": step.kind, "level": step.level, "parameters": step.parameters} for step in view.steps]
        return {
            "verdict": view.verdict,
            "stage": "once" if first is None else "strengthened",
            "operation": view.operation,
            "ssim": view.distance.ssim,
            "psnr": view.distance.psnr,
            "parameters": json.dumps(steps),
            "seed": self.settings.seed,
            "view_seed": view.seed,
            "degraded_pixel_hash": view.digest,
            "first_operation": first and first.operation,
            "first_ssim": first and first.distance.ssim,
            "first_psnr": first and first.distance.psnr,
            "first_reason": first and first.reason,
            "judge": self.settings.judge and self.settings.judge.model,
            "judge_answer": view.answer or (first and first.answer),
            "error": view.error,
        }

    def _redecide(self, row: SourceRow, record: dict[str, Any]) -> Pair:
        """Apply people's decision to an existing pair, or return it unchanged."""
        key = PairKey.of(record)
        decision = self.decisions.get(key) if row.view is not None else None
        if decision is None:
            return Pair(row.view, record)
        if decision == "accept":
            return Pair(row.view, {**record, "decision": decision, "verdict": "accepted", "error": None})
        rejected = {"decision": decision, "verdict": "rejected", "error": None}
        dropped = Pair(None, {**record, **rejected, **_file_facts(None)})
        if self.settings.rejected == "drop" or record["stage"] != "once":
            return dropped
        try:
            picture = read_picture(row.image)
            view = _degraded(picture, record["operation"], record["view_seed"])
            if (picture.pixel_hash, view.digest) != key:
                raise ViewError(
                    "the pair is not the one that people saw: its original has changed, or another version made it"
                )
            if draw_second(view.operation, self.settings.second, view.seed) is None:
                return dropped
            pair = self._finish(picture, view, record)
        except (ViewError, OSError, ValueError, MemoryError) as error:
            return _failed({**record, **_file_facts(None)}, error)
        return Pair(pair.png, {**pair.record, "seed": record["seed"]})


def _failed(record: dict[str, Any], error: Exception) -> Pair:
    return Pair(None, {**record, "verdict": "error", "kept": False, "error": str(error) or type(error).__name__})


def _degraded(picture: Picture, operation: str, seed: int, first: _View | None = None) -> _View:
    """Apply the steps of an operation to a picture, or those that a weaker view of it lacks to that view."""
    height, width = picture.array.shape[:2]
    steps = degradation_steps(operation, min(height, width), seed)
    array, done = (picture.array, 0) if first is None else (first.array, len(first.steps))
    for step in steps[done:]:
        try:
            array = apply_step(array, step, seed)
        except (OSError, ValueError, MemoryError) as error:  # JPEG, for one, ends at 65,500 pixels a side
            message = f"{step.kind} can't be applied to an image of {width} x {height} pixels ({error})"
            raise ViewError(message) from error
    distance, digest = measure_distance(picture.array, array), pixel_hash(Image.fromarray(array))
    return _View(array, operation, seed, steps, distance, digest, first=first)


def _file_facts(png: bytes | None) -> dict[str, Any]:
    return {"kept": png is not None, "degraded_file_hash": png and hashlib.sha256(png).hexdigest()}


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", compress_level=1)  # the default takes four times as long
    return buffer.getvalue()
