"""The scores of an unfinished run on disk: written as they come, found by the next run, never twice."""

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from ..io.atomic import write_json
from ..io.journal import append_line, read_lines
from .scored import ScoredImage
from .sources import ImageSource

SETTINGS_FILE = "settings.json"

_OWN = re.compile(r"\.?settings\.json(\..*partial)?|scores-\d+\.jsonl")


class ScoreLine(NamedTuple):
    """Where the score of an image is, and what tells whether the image has changed since."""

    stamp: str
    file: Path
    offset: int


class UnfinishedScores:
    """
    A folder with the settings of a run and a file of scores for each of its processes.

    The next run reads the files of all processes of the previous one, however many there were.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def start(self, settings: Mapping[str, Any]) -> None:
        """Create the folder; raise `ValueError` if it has scores of other settings, or other files."""
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
                    f"{self.folder} has unfinished scores of other settings ({changes}): finish them with the same "
                    "options, or start over with --overwrite."
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(file, settings)

    def remove(self) -> None:
        """Remove the folder; raise `ValueError` if it has other files."""
        self._check_own()
        shutil.rmtree(self.folder, ignore_errors=True)

    def lines(self) -> dict[str, ScoreLine]:
        """The last complete line of each image, by its key; raise `ValueError` for a damaged one."""
        found = {}
        for file in sorted(self.folder.glob("scores-*.jsonl")):
            try:
                for line in read_lines(file):
                    found[line.content["key"]] = ScoreLine(line.content["stamp"], file, line.offset)
            except (ValueError, KeyError) as error:
                raise ValueError(f"{file} is damaged ({error}): start over with --overwrite.") from error
        return found

    def missing(self, sources: Sequence[ImageSource]) -> dict[int, str]:
        """Numbers of the images without a score, or changed since, in order, each with its present stamp."""
        found = self.lines()
        stamps = ((number, source.key, source.stamp()) for number, source in enumerate(sources))
        return {number: stamp for number, key, stamp in stamps if key not in found or found[key].stamp != stamp}

    def append(self, process: int, entries: Iterable[tuple[ImageSource, str, ScoredImage]]) -> None:
        """Write scores to the file of a process as they come; the stamps are from before the images were read."""
        path = self.folder / f"scores-{process}.jsonl"
        for source, stamp, scored in entries:
            append_line(path, {"key": source.key, "stamp": stamp, **asdict(scored)}, sync=False)

    def scored(self, sources: Sequence[ImageSource]) -> Iterator[ScoredImage]:
        """Read the scores of the images, all of which have one, in order and one at a time."""
        found = self.lines()
        with ExitStack() as stack:
            files = {path: stack.enter_context(open(path, "rb")) for path in {line.file for line in found.values()}}
            for source in sources:
                line = found[source.key]
                files[line.file].seek(line.offset)
                entry = json.loads(files[line.file].readline())
                del entry["key"], entry["stamp"]
                yield ScoredImage(**entry | {name: tuple(entry[name]) for name in ("rollouts", "answers")})

    def _check_own(self) -> None:
        if not self.folder.is_dir():
            return
        foreign = [path.name for path in self.folder.iterdir() if not _OWN.fullmatch(path.name)]
        if foreign:
            raise ValueError(
                f"{self.folder} has {sorted(foreign)[0]}, which no scoring run wrote: move it away, or name another "
                "--out."
            )
