"""One scoring run over many images: resumable, on several processes, with a table and a page at its end."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ..io.outputs import check_outputs
from .gallery import GalleryRow, write_gallery
from .policy import adapter_base
from .score_file import check_table_path, write_table
from .scored import ScoredImage
from .scorer import HawkeyeScorer
from .sources import ImageSource
from .summary import Summary, summarize
from .unfinished import UnfinishedScores

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True)
class Processes:
    """The number of this process, their count, and a function that returns when all have called it."""

    number: int = 0
    count: int = 1
    wait: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class ScoringJob:
    """
    What a run scores, with what, and where.

    Args:
        load_scorer (`Callable[[], HawkeyeScorer]`):
            Makes the scorer; called only if something is left to score.
        settings (`Mapping[str, Any]`):
            What the scores depend on; unfinished scores of other settings are refused.
        processes ([`Processes`], *optional*):
            By default this one alone.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether existing outputs and unfinished scores are replaced.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.
        say (`Callable[[str], None]`, *optional*):
            Gets a line about scores that a previous run left.
    """

    load_scorer: Callable[[], HawkeyeScorer]
    settings: Mapping[str, Any]
    processes: Processes = Processes()
    overwrite: bool = False
    progress: bool = True
    say: Callable[[str], None] = lambda text: None

    @contextmanager
    def scored(
        self, sources: Sequence[ImageSource], out: str | os.PathLike | None
    ) -> Iterator[UnfinishedScores | None]:
        """
        Score all images, and yield their scores in the first process, `None` in the others.

        They are kept in `OUT.partial` until the block ends without an error; without `out` in a temporary folder.
        """
        if out is None and self.processes.count > 1:
            raise ValueError("Several processes need a common file for their scores: name one by --out.")
        with tempfile.TemporaryDirectory(prefix="q-hawkeye-") as temporary:
            folder = Path(temporary) / "scores" if out is None else Path(out).with_name(Path(out).name + ".partial")
            scores = UnfinishedScores(folder)
            self._fill(scores, sources)
            if self.processes.number != 0:
                yield None
                return
            yield scores
            scores.remove()

    def _fill(self, scores: UnfinishedScores, sources: Sequence[ImageSource]) -> None:
        first, wait = self.processes.number == 0, self.processes.wait
        wait()
        if first:
            if self.overwrite:
                scores.remove()
            scores.start(self.settings)
        wait()
        scores.start(self.settings)  # the same check in the others, so that all of them stop
        missing = scores.missing(sources)
        wait()  # nobody writes before all have read
        if first and len(missing) < len(sources):
            known = len(sources) - len(missing)
            self.say(f"{known} of {len(sources)} images already have their score ({scores.folder}).")
        if missing:
            try:
                scorer = self.load_scorer()
            except BaseException:
                if first and len(missing) == len(sources):
                    scores.remove()  # it is empty
                raise
            results = scorer.score_sources(
                sources,
                wanted=list(missing),
                share=(self.processes.number, self.processes.count),
                progress=self.progress and first,
            )
            scores.append(self.processes.number, ((sources[n], missing[n], scored) for n, scored in results))
        wait()
        if first and scores.missing(sources):
            raise OSError("Images were left out or changed during the run; run the same command to score them.")


def model_stamp(model: str | os.PathLike) -> str:
    """16 hexadecimal digits that change with the weights in a model's and its base's folders; `""` on the Hub."""
    folders = dict.fromkeys((Path(model), Path(adapter_base(model)[0]))) if Path(model).is_dir() else {}
    files = [file for folder in folders for file in sorted(folder.glob("*")) if file.suffix in _WEIGHTS]
    marks = [f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files]
    return hashlib.blake2b("\n".join(marks).encode(), digest_size=8).hexdigest() if marks else ""


def score_run(
    job: ScoringJob,
    sources: Sequence[ImageSource],
    *,
    out: str | os.PathLike | None = None,
    html: str | os.PathLike | None = None,
    reasoning: bool = False,
    title: str = "Image quality scores",
) -> Summary | None:
    """
    Score images into a table and a page.

    A killed run resumes from the scores in `OUT.partial`, with any number of processes. Its outputs are those of an
    uninterrupted run.

    Args:
        job ([`ScoringJob`]):
            The policy and its settings.
        sources (`Sequence[ImageSource]`):
            Images; the same in every process.
        out (`str` or `os.PathLike`, *optional*):
            Table to write, see [`~scoring.score_file.write_table`]. Without it nothing is kept between runs, and only
            one process can run.
        html (`str` or `os.PathLike`, *optional*):
            Page to write, see [`~scoring.gallery.write_gallery`].
        reasoning (`bool`, *optional*, defaults to `False`):
            Whether the table has the reasoning.
        title (`str`, *optional*):
            Title of the page.

    Returns:
        [`Summary`] in the first process, `None` in the others.

    Raises:
        `ValueError`: Several processes without `out`, or unfinished scores of other settings.
        `OSError`: See [`~io.outputs.check_outputs`]; or an image file was replaced during the run.
    """
    if out is not None:
        check_table_path(out)
    check_outputs(out, html, overwrite=job.overwrite)
    with job.scored(sources, out) as scores:
        if scores is None:
            return None
        summary = summarize(scores.scored(sources))
        if out is not None:
            write_table(out, scores.scored(sources), reasoning=reasoning)
        if html is not None:
            _write_page(html, sources, scores.scored(sources), summary, job.settings, title)
    return summary


def picture_of(source: ImageSource) -> Image.Image | None:
    """The (first) picture of a source, `None` if it can't be read any more."""
    try:
        return source.load()[0]
    except (ValueError, OSError):
        return None


def _write_page(
    html: str | os.PathLike,
    sources: Sequence[ImageSource],
    scored: Iterator[ScoredImage],
    summary: Summary,
    settings: Mapping[str, Any],
    title: str,
) -> None:
    facts = {
        "model": settings["model"],
        "answers": "greedy" if settings["rollouts"] is None else f"{settings['rollouts']} rollouts an image",
        "images": summary.images,
        "scored": summary.scored,
        "without a score": summary.unparsed,
        "unreadable": summary.broken,
        "answers clamped to the scale": summary.clamped,
    }
    rows = (
        GalleryRow(each, None if each.error is not None else partial(picture_of, source))
        for source, each in zip(sources, scored, strict=True)
    )
    write_gallery(
        html, rows, title=title, facts=facts, score_min=settings["score_min"], score_max=settings["score_max"]
    )
