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

from ..files import check_outputs
from .gallery import GalleryRow, write_gallery
from .journal import Journal
from .policy import adapter_base
from .score_file import check_table_path, write_table
from .scorer import HawkeyeScorer
from .sources import ImageSource
from .summary import Summary, summarize

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True)
class Processes:
    """
    The processes of a run.

    Args:
        number (`int`, *optional*, defaults to `0`):
            Number of this one.
        count (`int`, *optional*, defaults to `1`):
            How many there are.
        wait (`Callable[[], None]`, *optional*):
            Returns when all have called it.
    """

    number: int = 0
    count: int = 1
    wait: Callable[[], None] = lambda: None


def model_stamp(model: str | os.PathLike) -> str:
    """
    Returns what changes when the weights in a model's folder are replaced, for an adapter also those of its base.

    Args:
        model (`str` or `os.PathLike`):
            Folder of a model or an adapter. A name on the Hub has no stamp.

    Returns:
        `str`: 16 hexadecimal digits, or `""`.
    """
    folders = dict.fromkeys((Path(model), Path(adapter_base(model)[0]))) if Path(model).is_dir() else {}
    files = [file for folder in folders for file in sorted(folder.glob("*")) if file.suffix in _WEIGHTS]
    marks = [f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files]
    return hashlib.blake2b("\n".join(marks).encode(), digest_size=8).hexdigest() if marks else ""


def fill(
    journal: Journal,
    load_scorer: Callable[[], HawkeyeScorer],
    sources: Sequence[ImageSource],
    *,
    settings: Mapping[str, Any],
    processes: Processes,
    overwrite: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """
    Scores the images that have no score in a journal yet; parameters and errors as in [`score_run`].

    Args:
        journal ([`~scoring.journal.Journal`]):
            Where the scores go; the same folder in every process. Afterwards it has one for each image.
    """
    first = processes.number == 0
    processes.wait()
    if first:
        if overwrite:
            journal.remove()
        journal.start(settings)
    processes.wait()
    journal.start(settings)  # in the others: the same check, so that all of them stop
    missing = journal.missing(sources)
    processes.wait()  # nobody writes before all have read
    if first and len(missing) < len(sources):
        known = len(sources) - len(missing)
        say(f"{known} of {len(sources)} images have their score from before ({journal.folder}).")
    if missing:
        try:
            scorer = load_scorer()
        except BaseException:
            if first and len(missing) == len(sources):
                journal.remove()  # it holds nothing
            raise
        share = (processes.number, processes.count)
        scores = scorer.score_sources(sources, wanted=list(missing), share=share, progress=progress and first)
        journal.append(processes.number, ((sources[number], missing[number], each) for number, each in scores))
    processes.wait()
    if first and journal.missing(sources):
        raise OSError("Images were left out or changed in the meantime; the same command scores them.")


def score_run(
    load_scorer: Callable[[], HawkeyeScorer],
    sources: Sequence[ImageSource],
    *,
    settings: Mapping[str, Any],
    out: str | os.PathLike | None = None,
    html: str | os.PathLike | None = None,
    reasoning: bool = False,
    overwrite: bool = False,
    title: str = "Image quality scores",
    processes: Processes | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Summary | None:
    """
    Scores images into a table and a page. Scores are kept beside the table, in `OUT.partial`, as they come; a run that
    was killed goes on with them, with any number of processes, and its outputs are those of an unbroken run.

    Args:
        load_scorer (`Callable[[], HawkeyeScorer]`):
            Makes the scorer; called only if there is something left to score.
        sources (`Sequence[ImageSource]`):
            Images; the same in every process.
        settings (`Mapping[str, Any]`):
            What the scores depend on. Scores of a run with others are not gone on with.
        out (`str` or `os.PathLike`, *optional*):
            Table to write, see [`~scoring.score_file.write_table`]. Without it nothing is kept between runs, and there
            can be but one process.
        html (`str` or `os.PathLike`, *optional*):
            Page to write, see [`~scoring.gallery.write_gallery`].
        reasoning (`bool`, *optional*, defaults to `False`):
            Whether the table has the reasoning.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether existing outputs and unfinished scores are replaced.
        title (`str`, *optional*):
            Title of the page.
        processes ([`Processes`], *optional*):
            By default this one alone.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.
        say (`Callable[[str], None]`, *optional*):
            Gets a line about scores that were there already.

    Returns:
        [`Summary`] in the first process, `None` in the others.

    Raises:
        `ValueError`: Several processes without `out`, or unfinished scores that were made with other settings.
        `OSError`: See [`~files.check_outputs`]; or an image file was replaced while the run went on.
    """
    processes = processes or Processes()
    if out is not None:
        check_table_path(out)
    check_outputs(out, html, overwrite=overwrite)
    with scores_folder(out, processes) as folder:
        journal = Journal(folder)
        fill(
            journal,
            load_scorer,
            sources,
            settings=settings,
            overwrite=overwrite,
            processes=processes,
            progress=progress,
            say=say,
        )
        if processes.number != 0:
            return None
        summary = summarize(journal.scored(sources))
        if out is not None:
            write_table(out, journal.scored(sources), reasoning=reasoning)
        if html is not None:
            _write_page(html, sources, journal, summary, settings, title)
        journal.remove()
    return summary


@contextmanager
def scores_folder(out: str | os.PathLike | None, processes: Processes) -> Iterator[Path]:
    """
    Names the folder of the unfinished scores: beside the output, or one that is gone in the end.

    Args:
        out (`str` or `os.PathLike`, *optional*):
            File that the scores are for.
        processes ([`Processes`]):
            The processes of the run.

    Yields:
        `Path`: `OUT.partial`, which the run itself removes when it is done; without `out` a temporary folder.

    Raises:
        `ValueError`: Several processes without `out`.
    """
    if out is None and processes.count > 1:
        raise ValueError("Several processes need a file where their scores meet: name one by --out.")
    if out is not None:
        yield Path(out).with_name(Path(out).name + ".partial")
    else:
        with tempfile.TemporaryDirectory(prefix="q-hawkeye-") as folder:
            yield Path(folder)


def _write_page(
    html: str | os.PathLike,
    sources: Sequence[ImageSource],
    journal: Journal,
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
        GalleryRow(scored, None if scored.error is not None else partial(_picture, source))
        for source, scored in zip(sources, journal.scored(sources), strict=True)
    )
    write_gallery(
        html, rows, title=title, facts=facts, score_min=settings["score_min"], score_max=settings["score_max"]
    )


def _picture(source: ImageSource) -> Image.Image | None:
    try:
        return source.load()
    except (ValueError, OSError):  # gone since it was scored
        return None
