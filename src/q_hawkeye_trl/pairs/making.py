"""One pair: degrade, measure, ask the judge, strengthen what is too mild, measure again, apply people's decision."""

import hashlib
import io
import json
from collections.abc import Mapping
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
from .decisions import PairKey
from .distance import Distance, measure_distance
from .judge import Judge, JudgeError
from .settings import PairSettings
from .source import Picture, read_picture
from .verdicts import VerdictStore


class SourceRow(NamedTuple):
    """
    One row of the data.

    Args:
        split (`str`):
            Name of its split.
        row (`int`):
            Its number there.
        image_id (`str`):
            Name of the image.
        dataset (`str` or `None`):
            Name of its set.
        image (`dict` or `None`):
            What the image column stores.
        record (`dict` or `None`):
            Where the data are pairs already: its line of their manifest.
        view (`bytes` or `None`):
            And the PNG file of its view.
    """

    split: str
    row: int
    image_id: str
    dataset: str | None
    image: dict | None
    record: dict | None = None
    view: bytes | None = None


class Pair(NamedTuple):
    """
    What became of a row.

    Args:
        png (`bytes` or `None`):
            PNG file of the degraded view; `None` where there is none.
        record (`dict`):
            Its line of the manifest.
    """

    png: bytes | None
    record: dict[str, Any]


class ViewError(Exception):
    """A degradation can't be applied to an image; the message says why."""


@dataclass
class _View:
    """A view on its way."""

    array: np.ndarray
    operation: str
    seed: int
    steps: list[Step]
    distance: Distance
    digest: str
    verdict: str = "ok"
    reason: str | None = None  # of being too mild: "distance" or "judge"
    answer: str | None = None
    error: str | None = None
    first: "_View | None" = None  # what it was before it was strengthened


class PairMaker:
    """
    Makes pairs; the same row gives the same pair in any process and order.

    Args:
        settings ([`PairSettings`]):
            What is asked for.
        judge (`Callable`, *optional*):
            Judge of `settings.judge`.
        verdicts ([`VerdictStore`], *optional*):
            Where its verdicts are kept.
        decisions (`Mapping[PairKey, str]`, *optional*):
            People's decisions.
    """

    def __init__(
        self,
        settings: PairSettings,
        judge: Judge | None = None,
        verdicts: VerdictStore | None = None,
        decisions: Mapping[PairKey, str] | None = None,
    ):
        self.settings = settings
        self.judge = judge
        self.verdicts = verdicts
        self.decisions = decisions or {}

    def make(self, row: SourceRow) -> Pair:
        """
        Makes the pair of one row. What is wrong with an image or with the judge stands in the record.

        Args:
            row ([`SourceRow`]):
                The row.

        Returns:
            [`Pair`]
        """
        where = {"split": row.split, "row": row.row, "image_id": row.image_id, "dataset": row.dataset}
        if row.record is not None:
            return self._decide_again(row, where)
        try:
            picture = read_picture(row.image)
        except (OSError, ValueError, MemoryError) as error:
            message = str(error) or type(error).__name__
            return Pair(None, {**where, "verdict": "error", "kept": False, "error": message})
        described = {**where, **_described(picture)}
        try:
            return self._finish(picture, self._stages(picture), described)
        except ViewError as error:
            return Pair(None, {**described, "verdict": "error", "kept": False, "error": str(error)})

    def _stages(self, picture: Picture) -> _View:
        """The four stages: degrade, find the too mild, strengthen them, look again."""
        seed = view_seed(self.settings.seed, picture.pixel_hash, 0)
        view = self._first(picture, draw_degradation(self.settings.degradations, seed), seed)
        self._look(picture, view)
        return self._strengthened(picture, view, view.reason) if view.verdict == "too_mild" else view

    def _first(self, picture: Picture, operation: str, seed: int) -> _View:
        steps = degradation_steps(operation, min(picture.array.shape[:2]), seed)
        array = picture.array
        for step in steps:
            array = _applied(array, step, seed)
        return _View(array, operation, seed, steps, measure_distance(picture.array, array), _digest(array))

    def _strengthened(self, picture: Picture, view: _View, reason: str | None) -> _View:
        operation = draw_second(view.operation, self.settings.second, view.seed) if self.settings.second else None
        if operation is None:
            return view
        steps = degradation_steps(operation, min(picture.array.shape[:2]), view.seed)
        try:
            array = _applied(view.array, steps[1], view.seed)
        except ViewError as error:  # the weaker view is better than none
            view.error = str(error)
            return view
        distance = measure_distance(picture.array, array)
        view.reason = reason
        stronger = _View(array, operation, view.seed, steps, distance, _digest(array), first=view)
        self._look(picture, stronger)
        return stronger

    def _look(self, picture: Picture, view: _View) -> None:
        """Finds out whether a view is too mild: by distance, then by the judge."""
        ssim, psnr = view.distance
        if (ssim is None or ssim >= self.settings.mild_ssim) and psnr >= self.settings.mild_psnr:
            view.verdict, view.reason = "too_mild", "distance"
            return
        if self.judge is None:
            return
        key = PairKey(picture.pixel_hash, view.digest)
        verdict = self.verdicts.get(key) if self.verdicts is not None else None
        try:
            if verdict is None:
                verdict = self.judge(Image.fromarray(picture.array), Image.fromarray(view.array))
                if self.verdicts is not None:
                    self.verdicts.add(key, verdict)
        except JudgeError as error:
            view.verdict, view.error = "unjudged", str(error)
            return
        view.answer = verdict.answer
        if not verdict.different:
            view.verdict, view.reason = "too_mild", "judge"

    def _finish(self, picture: Picture, view: _View, described: dict[str, Any]) -> Pair:
        """Applies people's decision and the settings, and writes everything down."""
        decision = self.decisions.get(PairKey(picture.pixel_hash, view.digest))
        if decision == "reject" and self.settings.rejected == "strengthen":
            stronger = self._strengthened(picture, view, "person")
            if stronger is not view:  # another pair, about which people may have decided too
                view, decision = stronger, self.decisions.get(PairKey(picture.pixel_hash, stronger.digest))
        if decision is not None:
            view.verdict, view.error = ("accepted" if decision == "accept" else "rejected"), None
        kept = view.verdict != "rejected" and not (view.verdict == "too_mild" and self.settings.drop_mild)
        png = _png(view.array) if kept else None
        return Pair(png, {**described, **self._record(view), **_file(png), "decision": decision})

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

    def _decide_again(self, row: SourceRow, where: dict[str, Any]) -> Pair:
        """Applies people's decisions to a pair that stands already; all others stay byte by byte."""
        record = {**(row.record or {}), **where}
        key = PairKey(record["pixel_hash"], record["degraded_pixel_hash"])
        decision = self.decisions.get(key) if row.view is not None else None
        if decision is None:
            return Pair(row.view, record)
        if decision == "accept":
            return Pair(row.view, {**record, "decision": decision, "verdict": "accepted", "error": None})
        dropped = Pair(None, {**record, "decision": decision, "verdict": "rejected", "error": None, **_file(None)})
        if self.settings.rejected == "drop" or record["stage"] != "once":
            return dropped
        try:
            picture = read_picture(row.image)
        except (OSError, ValueError, MemoryError) as error:
            return Pair(None, {**record, "verdict": "error", "error": str(error), **_file(None)})
        try:
            view = self._first(picture, record["operation"], record["view_seed"])
            if (picture.pixel_hash, view.digest) != key:
                raise ViewError(
                    "the pair is not what people saw: its original has changed, or another version made it"
                )
            if draw_second(view.operation, self.settings.second, view.seed) is None:
                return dropped
            pair = self._finish(picture, view, record)
        except ViewError as error:
            return Pair(None, {**record, "verdict": "error", "error": str(error), **_file(None)})
        return Pair(pair.png, {**pair.record, "seed": record["seed"]})


def _applied(array: np.ndarray, step: Step, seed: int) -> np.ndarray:
    try:
        return apply_step(array, step, seed)
    except (OSError, ValueError, MemoryError) as error:  # JPEG, for one, ends at 65,500 pixels a side
        size = f"{array.shape[1]} x {array.shape[0]}"
        raise ViewError(f"{step.kind} can't be applied to an image of {size} pixels ({error})") from error


def _described(picture: Picture) -> dict[str, Any]:
    return {
        "width": picture.array.shape[1],
        "height": picture.array.shape[0],
        "mode": picture.mode,
        "orientation": picture.orientation,
        "pixel_hash": picture.pixel_hash,
        "file_hash": picture.file_hash,
        "note": picture.note,
    }


def _file(png: bytes | None) -> dict[str, Any]:
    return {"kept": png is not None, "degraded_file_hash": png and hashlib.sha256(png).hexdigest()}


def _digest(array: np.ndarray) -> str:
    return pixel_hash(Image.fromarray(array))


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", compress_level=1)  # a higher level takes four times as long
    return buffer.getvalue()
