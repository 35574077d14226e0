"""Load a policy, its processor and its question: a whole model, or a LoRA adapter with its base; merge the two."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.utils import cached_file, find_adapter_config_file

from ..io.publication import publish_folder
from ..question import PARSERS, TASK_FILE, Question, load_question, override

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel  # slow to import, and needed for adapters only

DTYPES = ("auto", "float32", "bfloat16", "float16")
"""Precisions to load a policy in; `auto` is that of its files."""


def load_policy(
    model: str | os.PathLike,
    *,
    dtype: str | None = None,
    device: str | torch.device | None = None,
    attn_implementation: str | None = None,
    max_pixels: int | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """
    Load a policy for inference. A LoRA adapter is applied to its base model without merging.

    Args:
        model (`str` or `os.PathLike`):
            Folder of a model or of an adapter, or its name on the Hub.
        dtype (`str`, *optional*):
            One of `DTYPES`. By default `auto` on an accelerator, `float32` on the CPU.
        device (`str` or `torch.device`, *optional*):
            By default the accelerator, if there is one.
        attn_implementation (`str`, *optional*):
            As in `from_pretrained`, for example `"flash_attention_2"`.
        max_pixels (`int`, *optional*):
            Largest image, in pixels, that the model sees. By default what the processor was saved with.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether code that comes with the model may run.

    Returns:
        `tuple[PreTrainedModel or PeftModel, ProcessorMixin]`: The model in evaluation mode on its device.

    Raises:
        `FileNotFoundError`: The folder or the adapter's base is missing.
        `OSError`: The model can't be read.
        `ValueError`: Weights of the model are missing (they would be random), the adapter does not fit its base, the
        dtype is unknown, or the device is not available.
    """
    name = _checked_name(model)
    if device is None:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = _checked_device(device or "cpu")
    if dtype is None:
        dtype = "float32" if device.type == "cpu" else "auto"
    if dtype not in DTYPES:
        raise ValueError(f"Unknown dtype {dtype!r}: expected one of {', '.join(DTYPES)}.")
    base, home, rank = adapter_base(name)
    loaded = _load_whole(
        base, dtype=dtype, attn_implementation=attn_implementation, trust_remote_code=trust_remote_code
    )
    if rank is not None:
        loaded = _with_adapter(loaded, name, base)
    limits = {} if max_pixels is None else {"max_pixels": max_pixels}
    processor = AutoProcessor.from_pretrained(home, trust_remote_code=trust_remote_code, **limits)
    return loaded.to(device).eval(), processor


def merge_adapter(adapter: str | os.PathLike, out: str | os.PathLike, *, dtype: str = "auto") -> Path:
    """
    Merge a LoRA adapter into its base, and publish a plain model folder with the processor and the question.

    Args:
        adapter (`str` or `os.PathLike`):
            Folder of the adapter, or its name on the Hub.
        out (`str` or `os.PathLike`):
            Folder to write; it must not exist.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Precision of the merged weights, one of `DTYPES`; `auto` keeps the base's. In bfloat16 the sums are
            rounded, so that the scores differ slightly from those of base and adapter.

    Returns:
        `Path`: `out`.

    Raises:
        `FileExistsError`: `out` exists; nothing is overwritten.
        `FileNotFoundError`: The adapter or its base is missing.
        `ValueError`: `adapter` is a whole model, or a merged weight would not be finite.
    """
    name, out = _checked_name(adapter), Path(out)
    if os.path.lexists(out):
        raise FileExistsError(f"{out} exists and nothing is overwritten; name another folder by --out.")
    if _adapter_config(name) is None:
        raise ValueError(f"{name} has no adapter_config.json, so there is nothing to merge: name a LoRA adapter.")
    model, processor = load_policy(name, dtype=dtype, device="cpu")
    merged = model.merge_and_unload(safe_merge=True)
    with publish_folder(out) as folder:
        merged.save_pretrained(folder)
        processor.save_pretrained(folder)
        if (path := _question_file(name)) is not None:
            shutil.copyfile(path, folder / TASK_FILE)
    return out


def find_question(model: str | os.PathLike, *, trust_remote_code: bool = False, **given: Any) -> Question:
    """
    Find the question of a policy: what was saved with it or its adapter's base, else the project's.

    Args:
        model (`str` or `os.PathLike`):
            Folder or Hub name of a model or an adapter.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether a parser that the model's files name as `"module:function"` may be imported.
        **given:
            Fields of [`Question`] that override the saved ones, unless they are `None`.

    Returns:
        [`Question`]

    Raises:
        `ValueError`: The saved file is damaged, a value is wrong, or the saved parser must not be imported.
    """
    path = _question_file(model)
    saved = None if path is None else load_question(path.parent)
    question = override(saved or Question(), given)
    # a downloaded file could name any function of any installed package
    if ":" in (question.parser or "") and given.get("parser") is None and not trust_remote_code:
        raise ValueError(
            f"{model} asks to read scores with {question.parser}, which is code: if you trust it, name it by "
            f"--score-parser {question.parser} (score_parser=), or choose one of {', '.join(PARSERS)}."
        )
    return question


def adapter_base(model: str | os.PathLike) -> tuple[str, str, int | None]:
    """Names of the whole model and of its processor's folder, and the adapter's rank (`None` without an adapter)."""
    name = _checked_name(model)
    adapter = _adapter_config(name)
    if adapter is None:
        return name, name, None
    if adapter.peft_type != "LORA":
        raise ValueError(f"{name} is an adapter of type {adapter.peft_type}, expected LoRA.")
    base = _base_of(adapter, name)
    return base, name if _has_processor(name) else base, adapter.r


def _checked_name(model: str | os.PathLike) -> str:
    name = os.fspath(model)
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or (os.sep != "/" and os.sep in name)
    if looks_local and not os.path.isdir(name):
        raise FileNotFoundError(f"There is no model folder {name}: correct the path, or pass a name on the Hub.")
    return name


def _checked_device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # unknown, not built in, or not available
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"The device {name} can't be used ({reason}): pass another one, for example cpu.") from error
    return device


def _question_file(model: str | os.PathLike) -> Path | None:
    quietly = {f"_raise_exceptions_for_{kind}": False for kind in ("missing_entries", "connection_errors")}
    for name in dict.fromkeys((os.fspath(model), adapter_base(model)[0])):
        path = cached_file(name, TASK_FILE, **quietly)
        if path is not None:
            return Path(path)
    return None


def _adapter_config(name: str) -> "PeftConfig | None":
    if find_adapter_config_file(name) is None:
        return None
    from peft import PeftConfig

    return PeftConfig.from_pretrained(name)


def _base_of(adapter: "PeftConfig", name: str) -> str:
    base = adapter.base_model_name_or_path
    try:
        return _checked_name(base or "")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"The adapter {name} needs its base model {base}, which is missing: correct `base_model_name_or_path` "
            "in its adapter_config.json."
        ) from error


def _has_processor(name: str) -> bool:
    files = ("processor_config.json", "preprocessor_config.json")
    return any(os.path.isfile(os.path.join(name, file)) for file in files)


def _with_adapter(base: PreTrainedModel, name: str, base_name: str) -> "PeftModel":
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    try:
        stored = set(load_peft_weights(name, device="cpu"))
        model = PeftModel.from_pretrained(base, name)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"The adapter {name} can't be applied to {base_name} ({error}).") from error
    differing = stored ^ set(get_peft_model_state_dict(model))
    if differing:  # PEFT only warns, and the rest of the adapter would have no effect
        raise ValueError(
            f"The adapter {name} does not fit its base {base_name} ({', '.join(sorted(differing)[:3])}, …): name the "
            "base of its training in its adapter_config.json."
        )
    return model


def _load_whole(name: str, **options) -> PreTrainedModel:
    try:
        model, report = AutoModelForImageTextToText.from_pretrained(name, output_loading_info=True, **options)
    except (OSError, SafetensorError) as error:
        raise OSError(f"The model {name} can't be loaded ({error}): pass a folder or a name on the Hub.") from error
    lacking = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if lacking:
        raise ValueError(
            f"{name} lacks weights of {type(model).__name__} ({', '.join(lacking[:5])}{', …' * (len(lacking) > 5)}): "
            "they would be random. Save the model again."
        )
    return model
