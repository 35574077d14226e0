"""The folder of a run: empty, or of the run that is resumed, and never with somebody else's results."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..io.journal import read_lines
from ..io.outputs import check_writable, is_taken

if TYPE_CHECKING:
    from ..config import HawkeyeGRPOConfig

METRICS_FILE = "metrics.jsonl"
RESULTS = ("summary.json", "*.safetensors", "*.bin", "config.json")
"""What a run leaves when it ends."""


def prepare_run_folder(training_args: "HawkeyeGRPOConfig", *, numbered: bool) -> str | None:
    """
    Choose and create the folder of a run, the same on every rank, and find the checkpoint to resume from.

    Args:
        training_args ([`HawkeyeGRPOConfig`]):
            Its `output_dir` is replaced by the folder chosen. `resume_from_checkpoint` is `"true"` (the last whole
            checkpoint of the folder), `"auto"` (the same, or the start if there is none yet) or a checkpoint's path.
        numbered (`bool`):
            Whether `output_dir` is only a default, so that a taken one is followed by `OUTPUT_DIR-2`, ...

    Returns:
        `str` or `None`: Folder of the checkpoint.

    Raises:
        `FileExistsError`: The folder holds files and the run does not resume.
        `OSError`: The folder can't be created or written to.
        `ValueError`: There is no complete checkpoint to resume from.
    """
    from accelerate.utils import broadcast_object_list

    from ..checkpointing.checkpoint_files import choose_checkpoint

    resume = _resume_choice(training_args.resume_from_checkpoint)
    own = resume in ("true", "auto") or _is_inside(resume, training_args.output_dir)
    choice = [choose_run_folder(training_args.output_dir, resume=own, numbered=numbered)]
    training_args.output_dir = str(broadcast_object_list(choice)[0])
    create_run_folder(training_args.output_dir)
    if resume is None:
        return None
    folder = training_args.output_dir
    is_started = {"is_started": lambda: was_started(folder)} if resume == "auto" else {}
    return choose_checkpoint(True if resume in ("true", "auto") else resume, folder, **is_started)


def choose_run_folder(wanted: str | Path, *, resume: bool, numbered: bool) -> Path:
    """Return the wanted folder, or with `numbered` the first free one, or the newest taken one to resume."""
    wanted = Path(wanted)
    if not numbered:
        if not resume and is_taken(wanted):
            raise FileExistsError(
                f"output_dir {wanted} is not empty and nothing in it is overwritten; name another folder, or resume "
                "this run with --resume_from_checkpoint true."
            )
        return wanted
    candidates = [wanted]
    while is_taken(candidates[-1]):
        candidates.append(wanted.with_name(f"{wanted.name}-{len(candidates) + 1}"))
    return candidates[-2] if resume and len(candidates) > 1 else candidates[-1]


def create_run_folder(folder: str | Path) -> None:
    """Create the folder of a run; raise `OSError` if it can't be written to."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        check_writable(folder)
    except OSError as error:
        raise OSError(
            f"output_dir {folder} can't be written to ({error.strerror or error}); name a writable folder."
        ) from error


def was_started(folder: str | Path) -> bool:
    """Tell whether a folder has checkpoints, complete or not; raise `FileExistsError` if it has only results."""
    from ..checkpointing.checkpoint_files import list_checkpoints

    if list_checkpoints(folder):
        return True
    results = [name for pattern in RESULTS for name in sorted(path.name for path in Path(folder).glob(pattern))]
    if results:
        raise FileExistsError(
            f"output_dir {folder} has no checkpoint to resume from, but {results[0]} of a finished run, which is not "
            "overwritten; name another folder."
        )
    return False


def _resume_choice(value: str | bool | None) -> str | None:
    """`None`, `"true"`, `"auto"` or the path of a checkpoint."""
    text = str(value).lower()
    if text in ("none", "false"):
        return None
    return text if text in ("true", "auto") else str(value)


def _is_inside(checkpoint: str | None, folder: str) -> bool:
    return checkpoint is not None and Path(folder).resolve() in Path(checkpoint).resolve().parents


def read_metrics(path: str | Path) -> list[dict]:
    """Read the complete lines of a `metrics.jsonl`; a missing file counts as empty."""
    return [line.content for line in read_lines(path)]
