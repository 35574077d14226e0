"""Where a run writes: an empty or resumed folder that can be written to, never somebody else's results."""

import tempfile
from pathlib import Path


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


def _is_taken(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
