"""Finding a whole checkpoint, and loading its weights back into a live model completely or not at all."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME
from transformers.utils import logging

logger = logging.get_logger(__name__)

_WEIGHT_FILES = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)


def has_full_weights(checkpoint: str | Path) -> bool:
    """
    Tells whether a checkpoint folder holds a whole model (and not an adapter or a DeepSpeed or FSDP shard folder).

    Args:
        checkpoint (`str` or `Path`):
            Folder that the trainer saved.

    Returns:
        `bool`
    """
    return any((Path(checkpoint) / name).is_file() for name in _WEIGHT_FILES)


def load_full_weights(model: PreTrainedModel, checkpoint: str | Path) -> None:
    """
    Loads the weights of a checkpoint into `model`, in place.

    `Trainer` loads the file's tensors with `strict=False`, but `save_pretrained` renames the keys of Qwen2-VL,
    Qwen2.5-VL, Gemma 3, LLaVA and InternVL, so that training would go on from the start weights with only a warning.
    `from_pretrained` knows the names.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Model to load into.
        checkpoint (`str` or `Path`):
            Folder that the trainer saved.

    Raises:
        `ValueError`: Parameters are missing from the checkpoint, unexpected or of another shape.
    """
    # float32 holds bf16 and fp16 exactly, whatever mixture the live model has
    loaded, report = type(model).from_pretrained(checkpoint, dtype=torch.float32, output_loading_info=True)
    wrong = {name: sorted(map(str, keys)) for name, keys in report.items() if keys and name.endswith("keys")}
    if wrong:
        raise ValueError(
            f"{checkpoint} does not fit {type(model).__name__}: {wrong}; resume from a checkpoint of the same model."
        )
    model.load_state_dict(loaded.state_dict(), strict=True)


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
    raise FileNotFoundError(f"{output_dir} holds no whole checkpoint to resume from; start without it.")


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
    for weights in checkpoint.glob("*.safetensors"):
        try:
            with safe_open(weights, framework="pt"):  # checks the header against the file's size
                pass
        except SafetensorError as error:
            return f"{weights.name}: {error}"
    return None
