"""Complete checkpoints: how to recognize them, which one to resume from, and the manifest of their files."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..io.atomic import write_json

logger = logging.get_logger(__name__)

MANIFEST = "manifest.json"
"""Lists the files of a checkpoint with their sizes. It is written last."""

WEIGHTS = ("model*.safetensors", "pytorch_model*", "adapter_model*", "global_step*")
"""Files with the weights of a model, FSDP, an adapter and DeepSpeed."""

_SHARDED = ("global_step*", "pytorch_model_fsdp*", "optimizer_*")
_STATE_FILES = ("optimizer.pt", "scheduler.pt", "rng_state*.pth")


def list_checkpoints(output_dir: str | Path, *, complete: bool = False) -> list[Path]:
    """
    List the checkpoints of a run, newest first.

    Args:
        output_dir (`str` or `Path`):
            Folder of the run, with `checkpoint-STEP` folders.
        complete (`bool`, *optional*, defaults to `False`):
            Leave out incomplete and damaged checkpoints.

    Returns:
        `list[Path]`
    """
    found = Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    folders = [path for path in found if path.name.split("-")[-1].isdigit() and path.is_dir()]
    folders.sort(key=lambda path: int(path.name.split("-")[-1]), reverse=True)
    return [path for path in folders if not complete or checkpoint_problem(path) is None]


def last_complete_checkpoint(output_dir: str | Path) -> Path:
    """
    Find the newest complete checkpoint of a run. Newer ones that are incomplete are reported as warnings.

    Args:
        output_dir (`str` or `Path`):
            Folder of the run, with `checkpoint-STEP` folders.

    Returns:
        `Path`: Folder of the checkpoint.

    Raises:
        `FileNotFoundError`: The run has no complete checkpoint.
    """
    for folder in list_checkpoints(output_dir):
        problem = checkpoint_problem(folder)
        if problem is None:
            return folder
        logger.warning(f"{folder} is incomplete ({problem}); skipping it.")
    raise FileNotFoundError(f"{output_dir} has no complete checkpoint to resume from; use another output_dir.")


def choose_checkpoint(
    wanted: str | bool, output_dir: str | Path, *, is_started: Callable[[], bool] = lambda: True
) -> str | None:
    """
    Return the complete checkpoint to resume from, which the main process chooses for all ranks.

    Args:
        wanted (`str` or `bool`):
            Folder of a checkpoint, or `True` for the newest complete one of the run.
        output_dir (`str` or `Path`):
            Folder of the run.
        is_started (`Callable[[], bool]`, *optional*):
            Called on the main process; `False` means that there is nothing to resume, and `None` is returned.

    Raises:
        `ValueError`: On every rank: there is no complete checkpoint, or `is_started` refuses the folder.
    """
    choice: list = [None, None]
    if PartialState().is_main_process:
        try:
            if is_started():
                choice[0] = str(last_complete_checkpoint(output_dir) if wanted is True else wanted)
                if problem := checkpoint_problem(choice[0]):
                    choice[1] = f"{wanted} is not a complete checkpoint ({problem}); use another one."
        except (FileNotFoundError, FileExistsError) as error:
            choice[1] = str(error)
    checkpoint, problem = broadcast_object_list(choice)
    if problem:
        raise ValueError(problem)
    return checkpoint


def resume_hint(output_dir: str | Path) -> str:
    """Return a sentence that says how to resume a run that ended early."""
    complete = list_checkpoints(output_dir, complete=True)
    if not complete:
        return f"{output_dir} has no complete checkpoint: restart, with a smaller save_steps if runs end early."
    return f"Resume from {complete[0]} with --resume_from_checkpoint true (resume_from_checkpoint=True)."


def write_manifest(checkpoint: str | Path) -> None:
    """List the files of a checkpoint with their sizes. Call it when all other files are written."""
    checkpoint = Path(checkpoint)
    (checkpoint / MANIFEST).unlink(missing_ok=True)
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    sizes = {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}
    write_json(checkpoint / MANIFEST, {"files": sizes}, indent=1)


def checkpoint_problem(checkpoint: str | Path) -> str | None:
    """
    Say what is wrong with a checkpoint.

    A complete checkpoint has every file of its manifest in full size, and files of known formats open. Checkpoints
    without a manifest, saved by other trainers, must have the files that a checkpoint needs.

    Args:
        checkpoint (`str` or `Path`):
            Folder that a trainer saved.

    Returns:
        `str` or `None`: Names the file. `None` if the checkpoint is complete.
    """
    checkpoint = Path(checkpoint)
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text())["global_step"]  # the trainer writes it last
        return _manifest_problem(checkpoint) or _missing_part(checkpoint) or _unreadable_file(checkpoint)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{TRAINER_STATE_NAME}: {error}"


def _manifest_problem(checkpoint: Path) -> str | None:
    manifest = checkpoint / MANIFEST
    if not manifest.is_file():
        return None
    try:
        sizes = json.loads(manifest.read_text())["files"]
    except (ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST}: {error}"
    for name, size in sizes.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, expected {size}"
    return None


def _missing_part(checkpoint: Path) -> str | None:
    if not any(next(checkpoint.glob(pattern), None) for pattern in WEIGHTS):
        return "it has no weights"
    for index in checkpoint.glob("*.safetensors.index.json"):
        try:
            shards = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError) as error:
            return f"{index.name}: {error}"
        if missing := sorted(name for name in shards if not (checkpoint / name).is_file()):
            return f"{missing[0]}, listed in {index.name}, is missing"
    if any(next(checkpoint.glob(pattern), None) for pattern in _SHARDED):  # DeepSpeed and FSDP have other files
        return None
    absent = [name for name in _STATE_FILES if not any(checkpoint.glob(name))]
    # save_only_model leaves out all of them
    return f"{absent[0]} is missing" if 0 < len(absent) < len(_STATE_FILES) else None


def _unreadable_file(checkpoint: Path) -> str | None:
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".safetensors":
                with safe_open(path, framework="pt"):  # checks the header against the file's size
                    pass
            elif path.suffix in (".pt", ".pth", ".bin"):
                with zipfile.ZipFile(path):  # its directory is at the end of the file
                    pass
        except (SafetensorError, ValueError, zipfile.BadZipFile) as error:
            return f"{path.relative_to(checkpoint).as_posix()}: {error}"
    return None
