"""The scores of an unfinished run on disk: written as they come, found again by the next run, never twice."""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .scored import ScoredImage
from .sources import ImageSource

SETTINGS_FILE = "settings.json"

_OWN = re.compile(r"settings\.(json|partial)|scores-\d+\.jsonl|table")


class Journal:
    """
    A folder with the settings of a run and a file of scores for each of its processes, one JSON object a line. A run
    that goes on reads the files of all processes of the one before, however many there were.

    Args:
        folder (`str` or `os.PathLike`):
            The folder.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)

    def start(self, settings: Mapping[str, Any]) -> None:
        """
        Makes the folder, or checks that it goes on with the same settings.

        Args:
            settings (`Mapping[str, Any]`):
                What the scores depend on, as JSON has it.

        Raises:
            `ValueError`: The folder holds scores that were made with other settings, or files of somebody else.
        """
        self._check_own()
        settings = json.loads(json.dumps(settings))
        file = self.folder / SETTINGS_FILE
        if file.is_file():
            kept = json.loads(file.read_text("utf-8"))
            differing = [name for name in settings if kept.get(name) != settings[name]]
            if not differing:
                return
            if self.lines():
                changes = "; ".join(f"{name} {kept.get(name)!r}, now {settings[name]!r}" for name in differing)
                raise ValueError(
                    f"{self.folder} holds unfinished scores that were made otherwise ({changes}): finish them with "
                    "the same options, or start anew by --overwrite."
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
        partial.replace(file)

    def remove(self) -> None:
        """Removes the folder; `ValueError` where it holds files of somebody else."""
        self._check_own()
        shutil.rmtree(self.folder, ignore_errors=True)

    def lines(self) -> dict[str, tuple[str, Path, int]]:
        """
        Finds the scores that stand in the folder.

        Returns:
            `dict[str, tuple[str, Path, int]]`: By the key of the image its stamp, and the file and the place in it of
            its last whole line.

        Raises:
            `ValueError`: A whole line is not what a run writes.
        """
        found = {}
        for file in sorted(self.folder.glob("scores-*.jsonl")):
            place = 0
            with open(file, "rb") as lines:
                for line in lines:
                    if line.endswith(b"\n"):  # otherwise a crash cut it off
                        try:
                            entry = json.loads(line)
                            found[entry["key"]] = (entry["stamp"], file, place)
                        except (ValueError, KeyError, TypeError) as error:
                            raise ValueError(
                                f"{file} is damaged at byte {place}: start anew by --overwrite, or cut it off there."
                            ) from error
                    place += len(line)
        return found

    def missing(self, sources: Sequence[ImageSource]) -> dict[int, str]:
        """
        Lists the images without a score, or whose file has changed since.

        Args:
            sources (`Sequence[ImageSource]`):
                All images.

        Returns:
            `dict[int, str]`: Their numbers in order, each with the stamp of its image at this moment.
        """
        found = self.lines()
        stamps = ((number, source.key, source.stamp()) for number, source in enumerate(sources))
        return {number: stamp for number, key, stamp in stamps if key not in found or found[key][0] != stamp}

    def append(self, process: int, entries: Iterable[tuple[ImageSource, str, ScoredImage]]) -> None:
        """
        Writes scores to the file of a process, each as soon as it comes.

        Args:
            process (`int`):
                Number of the process; no other one writes its file.
            entries (`Iterable[tuple[ImageSource, str, ScoredImage]]`):
                Images, their stamps from before they were read, and their scores.
        """
        path = self.folder / f"scores-{process}.jsonl"
        _cut_broken_line(path)
        with open(path, "a", encoding="ascii") as file:
            for source, stamp, scored in entries:
                file.write(json.dumps({"key": source.key, "stamp": stamp, **asdict(scored)}) + "\n")
                file.flush()

    def scored(self, sources: Sequence[ImageSource]) -> Iterator[ScoredImage]:
        """
        Reads the scores back, one at a time.

        Args:
            sources (`Sequence[ImageSource]`):
                Images, all of which have a score.

        Returns:
            `Iterator[ScoredImage]`: In the order of `sources`.
        """
        found = self.lines()
        files: dict[Path, Any] = {}
        try:
            for source in sources:
                _, path, place = found[source.key]
                file = files.setdefault(path, None) or open(path, "rb")  # noqa: SIM115 - closed below
                files[path] = file
                file.seek(place)
                entry = json.loads(file.readline())
                del entry["key"], entry["stamp"]
                yield ScoredImage(**entry | {name: tuple(entry[name]) for name in ("rollouts", "answers")})
        finally:
            for file in files.values():
                file.close()

    def _check_own(self) -> None:
        if not self.folder.is_dir():
            return
        foreign = [path.name for path in self.folder.iterdir() if not _OWN.fullmatch(path.name)]
        if foreign:
            raise ValueError(
                f"{self.folder} holds {sorted(foreign)[0]}, which no scoring run has written: move it away, or name "
                "another --out."
            )


def _cut_broken_line(path: Path) -> None:
    # what is appended to half a line would be lost with it
    if not path.is_file():
        return
    with open(path, "rb+") as file:
        content_end = 0
        for line in file:
            if line.endswith(b"\n"):
                content_end += len(line)
        file.truncate(content_end)
