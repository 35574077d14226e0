"""Loading a checkpoint's weights into a live model, completely or not at all."""

import copy
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

_WEIGHT_FILES = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)


def has_full_weights(checkpoint: str | Path) -> bool:
    """Tell whether a checkpoint has a full model, not an adapter or shards of DeepSpeed or FSDP."""
    return any((Path(checkpoint) / name).is_file() for name in _WEIGHT_FILES)


def load_full_weights(model: PreTrainedModel, checkpoint: str | Path) -> None:
    """
    Load the weights of a checkpoint in place. Raise `ValueError` for missing, unexpected and mismatched parameters.

    `Trainer` loads with `strict=False`, but `save_pretrained` renames the keys of Qwen2-VL, Qwen2.5-VL, Gemma 3, LLaVA
    and InternVL: training would restart from the initial weights with only a warning. `from_pretrained` maps them.
    """
    loaded, report = type(model).from_pretrained(
        checkpoint,
        config=copy.deepcopy(model.config),  # the live model's shapes, so that other shapes are reported
        ignore_mismatched_sizes=True,
        attn_implementation="eager",  # nothing runs; others complain about float32 or the CPU
        dtype=_dtype_for(model),
        output_loading_info=True,
    )
    wrong = [f"{kind}: {_first(keys)}" for kind, keys in report.items() if keys and kind.endswith("keys")]
    if wrong:
        raise ValueError(
            f"{checkpoint} does not fit {type(model).__name__} ({'; '.join(wrong)}); resume from a checkpoint of the "
            "same model."
        )
    model.load_state_dict(loaded.state_dict(), strict=True)


def _dtype_for(model: torch.nn.Module) -> torch.dtype:
    """The live model's type, since every rank of a node has a copy; float32 for mixed types."""
    dtypes = {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def _first(keys: Iterable, count: int = 5) -> str:
    names = sorted(map(str, keys))
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
