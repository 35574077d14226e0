"""Finding the checkpoint to resume from: the newest one that was written to its end."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

logger = logging.get_logger(__name__)

WEIGHTS = ("*.safetensors", "pytorch_model*", "adapter_model*", "global_step*")
"""What holds the weights: of a model or adapter, of FSDP, of DeepSpeed."""


def last_whole_checkpoint(output_dir: str | Path) -> Path:
    """
    Finds the newest checkpoint of a run that was written to its end.

    Args:
        output_dir (`str` or `Path`):
            Folder of the run, with `checkpoint-STEP` folders.

    Returns:
        `Path`: The checkpoint's folder.

    Raises:
        `FileNotFoundError`: There is none.
    """
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    for folder in sorted(folders, key=lambda path: int(path.name.split("-")[-1]), reverse=True):
        problem = checkpoint_problem(folder)
        if problem is None:
            return folder
        logger.warning(f"{folder} is not whole ({problem}); an older checkpoint is used.")
    raise FileNotFoundError(
        f"{output_dir} holds no whole checkpoint to resume from; start anew in another output_dir."
    )


def checkpoint_problem(checkpoint: str | Path) -> str | None:
    """
    Says what is missing from a checkpoint, or `None` when it is whole.

    Args:
        checkpoint (`str` or `Path`):
            Folder that the trainer saved.

    Returns:
        `str` or `None`
    """
    checkpoint = Path(checkpoint)
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text())  # the trainer writes it last
    except (OSError, ValueError) as error:
        return f"{TRAINER_STATE_NAME}: {error}"
    if not any(next(checkpoint.glob(pattern), None) for pattern in WEIGHTS):
        return "it holds no weights"
    for index in checkpoint.glob("*.safetensors.index.json"):
        shards = set(json.loads(index.read_text())["weight_map"].values())
        if missing := sorted(name for name in shards if not (checkpoint / name).is_file()):
            return f"{missing[0]} is missing, which {index.name} names"
    for weights in checkpoint.glob("*.safetensors"):
        try:
            with safe_open(weights, framework="pt"):  # checks the header against the file's size
                pass
        except SafetensorError as error:
            return f"{weights.name}: {error}"
    return None
