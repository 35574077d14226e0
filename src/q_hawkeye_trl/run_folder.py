"""Where a run writes: an empty or resumed folder that can be written to, never somebody else's results."""

import tempfile
from pathlib import Path

from .checkpointing.checkpoint_files import list_checkpoints

RESULTS = ("summary.json", "*.safetensors", "*.bin", "config.json")
"""What a run leaves when it ends."""


def choose_run_folder(wanted: str | Path, *, resume: bool, numbered: bool) -> Path:
    """
    Chooses the folder of a run.

    Args:
        wanted (`str` or `Path`):
            Folder asked for.
        resume (`bool`):
            Whether the run goes on with what the folder holds.
        numbered (`bool`):
            Whether `wanted` is only a default: a taken one is then followed by `wanted-2`, `wanted-3`, ..., and a
            resume takes the newest of them.

    Returns:
        `Path`

    Raises:
        `FileExistsError`: The folder holds files already and the run does not resume.
    """
    wanted = Path(wanted)
    if not numbered:
        if not resume and _is_taken(wanted):
            raise FileExistsError(
                f"output_dir {wanted} is not empty and nothing in it is overwritten; name another folder, or go on "
                "with this run by --resume_from_checkpoint true."
            )
        return wanted
    candidates = [wanted]
    while _is_taken(candidates[-1]):
        candidates.append(wanted.with_name(f"{wanted.name}-{len(candidates) + 1}"))
    return candidates[-2] if resume and len(candidates) > 1 else candidates[-1]


def create_run_folder(folder: str | Path) -> None:
    """
    Creates the folder of a run and proves that it can be written to, before any time is spent on the run.

    Args:
        folder (`str` or `Path`):
            Folder to create; it may exist.

    Raises:
        `OSError`: The folder can't be created or written to.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"output_dir {folder} can't be written to ({error.strerror or error}); name a writable folder."
        ) from error


def was_started(folder: str | Path) -> bool:
    """
    Tells whether the run of a folder has a checkpoint to go on from, whole or not, or is to begin from the start.

    Args:
        folder (`str` or `Path`):
            Folder of the run; what a run leaves that ended before its first checkpoint may lie there.

    Returns:
        `bool`

    Raises:
        `FileExistsError`: The folder has no checkpoint, but the model or the summary of a run.
    """
    if list_checkpoints(folder):
        return True
    results = [name for pattern in RESULTS for name in sorted(path.name for path in Path(folder).glob(pattern))]
    if results:
        raise FileExistsError(
            f"output_dir {folder} has no checkpoint to go on from, but {results[0]} of a run that ended, which is not "
            "overwritten; name another folder."
        )
    return False


def _is_taken(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
