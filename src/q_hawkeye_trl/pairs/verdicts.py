"""Verdicts of a judge, on disk as they come, so that no pair is judged twice."""

import os
import threading

from .decisions import PairKey
from .journal import append_line, read_lines
from .judge import Verdict

VERDICTS_FILE = "verdicts.jsonl"


class VerdictStore:
    """
    Verdicts of one judge by pair.

    Args:
        path (`str` or `os.PathLike`):
            File of JSON lines, created with the first verdict; lines of other judges are left alone.
        judge (`str`):
            Name of the judge.

    Raises:
        `ValueError`: A line is no verdict; the message names it.
    """

    def __init__(self, path: str | os.PathLike, judge: str):
        self.path = path
        self.judge = judge
        self._lock = threading.Lock()
        self._verdicts: dict[PairKey, Verdict] = {}
        for number, line in enumerate(read_lines(path), 1):
            if line.get("judge") != judge:
                continue
            try:
                key = PairKey(line["pixel_hash"], line["degraded_pixel_hash"])
                self._verdicts[key] = Verdict(line["different"], line["answer"])
            except KeyError as error:
                raise ValueError(f"{path}, line {number}: a verdict without {error}: remove the line.") from error

    def get(self, key: PairKey) -> Verdict | None:
        """
        Looks a verdict up.

        Args:
            key ([`~pairs.decisions.PairKey`]):
                The pair.

        Returns:
            [`~pairs.judge.Verdict`] or `None`: `None` where it was not judged yet.
        """
        with self._lock:
            return self._verdicts.get(key)

    def add(self, key: PairKey, verdict: Verdict) -> None:
        """
        Stores a verdict; it is on the disk when this returns.

        Args:
            key ([`~pairs.decisions.PairKey`]):
                The pair.
            verdict ([`~pairs.judge.Verdict`]):
                What the judge said.
        """
        with self._lock:
            append_line(self.path, {"judge": self.judge, **key._asdict(), **verdict._asdict()})
            self._verdicts[key] = verdict
