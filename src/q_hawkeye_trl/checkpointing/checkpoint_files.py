"""Checkpoints that are whole: a list of their files, what is wrong with one, and which one to resume from."""

import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..io.atomic import fsync_path

logger = logging.get_logger(__name__)

MANIFEST = "manifest.json"
"""Lists the files of a checkpoint with their sizes; written last."""

WEIGHTS = ("model*.safetensors", "pytorch_model*", "adapter_model*", "global_step*")
"""What holds the weights: of a model or adapter, of FSDP, of DeepSpeed."""

_SHARDED = ("global_step*", "pytorch_model_fsdp*", "optimizer_*")  # DeepSpeed and FSDP save in ways of their own


def list_checkpoints(output_dir: str | Path, *, whole: bool = False) -> list[Path]:
    """
    Lists the checkpoints of a run, the newest first.

    Args:
        output_dir (`str` or `Path`):
            Folder of the run, with `checkpoint-STEP` folders.
        whole (`bool`, *optional*, defaults to `False`):
            Whether to leave out those that are not whole.

    Returns:
        `list[Path]`
    """
    found = Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    folders = [path for path in found if path.name.split("-")[-1].isdigit() and path.is_dir()]
    folders.sort(key=lambda path: int(path.name.split("-")[-1]), reverse=True)
    return [path for path in folders if not whole or checkpoint_problem(path) is None]


def last_whole_checkpoint(output_dir: str | Path) -> Path:
    """
    Finds the newest checkpoint of a run that is whole, and warns of newer ones that are not.

    Args:
        output_dir (`str` or `Path`):
            Folder of the run, with `checkpoint-STEP` folders.

    Returns:
        `Path`: The checkpoint's folder.

    Raises:
        `FileNotFoundError`: There is none.
    """
    for folder in list_checkpoints(output_dir):
        problem = checkpoint_problem(folder)
        if problem is None:
            return folder
        logger.warning(f"{folder} is not whole ({problem}); an older checkpoint is used.")
    raise FileNotFoundError(
        f"{output_dir} holds no whole checkpoint to resume from; start anew in another output_dir."
    )


def write_manifest(checkpoint: str | Path) -> None:
    """
    Lists all files of a checkpoint with their sizes, and brings them to the disk. Call it when all else is written.

    Args:
        checkpoint (`str` or `Path`):
            Folder of the checkpoint.
    """
    checkpoint = Path(checkpoint)
    (checkpoint / MANIFEST).unlink(missing_ok=True)
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    sizes = {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}
    (checkpoint / MANIFEST).write_text(json.dumps({"files": sizes}, indent=1) + "\n")
    folders = {path.parent for path in files}
    for path in [*files, checkpoint / MANIFEST, *folders]:
        fsync_path(path)


def checkpoint_problem(checkpoint: str | Path) -> str | None:
    """
    Says what is wrong with a checkpoint, or `None` when it is whole: every file of its manifest has its size, and
    every file of a known kind opens. Checkpoints without a manifest (saved by other trainers) are checked by what a
    checkpoint must hold.

    Args:
        checkpoint (`str` or `Path`):
            Folder that a trainer saved.

    Returns:
        `str` or `None`: Names the file.
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
            return f"{name} has {path.stat().st_size} bytes and had {size} when it was saved"
    return None


def _missing_part(checkpoint: Path) -> str | None:
    if not any(next(checkpoint.glob(pattern), None) for pattern in WEIGHTS):
        return "it holds no weights"
    for index in checkpoint.glob("*.safetensors.index.json"):
        try:
            shards = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError) as error:
            return f"{index.name}: {error}"
        if missing := sorted(name for name in shards if not (checkpoint / name).is_file()):
            return f"{missing[0]} is missing, which {index.name} names"
    if any(next(checkpoint.glob(pattern), None) for pattern in _SHARDED):
        return None
    parts = {name: bool(list(checkpoint.glob(name))) for name in ("optimizer.pt", "scheduler.pt", "rng_state*.pth")}
    absent = [name for name, there in parts.items() if not there]
    return f"{absent[0]} is missing" if 0 < len(absent) < len(parts) else None  # none at all with save_only_model


def _unreadable_file(checkpoint: Path) -> str | None:
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".safetensors":
                with safe_open(path, framework="pt"):  # checks the header against the file's size
                    pass
            elif path.suffix in (".pt", ".pth", ".bin"):
                with zipfile.ZipFile(path):  # its directory stands at the end
                    pass
        except (SafetensorError, ValueError, zipfile.BadZipFile) as error:
            return f"{path.relative_to(checkpoint).as_posix()}: {error}"
    return None


def resume_hint(output_dir: str | Path) -> str:
    """
    Says from where a run that ended can be resumed.

    Args:
        output_dir (`str` or `Path`):
            Folder of the run.

    Returns:
        `str`: A sentence.
    """
    whole = list_checkpoints(output_dir, whole=True)
    if not whole:
        return f"{output_dir} holds no whole checkpoint: start anew, with a smaller save_steps if runs end early."
    return f"{whole[0]} is whole; go on from it by --resume_from_checkpoint true (resume_from_checkpoint=True)."
