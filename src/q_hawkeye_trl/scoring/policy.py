"""Loading a policy with its processor: a whole model, or a LoRA adapter over its base; and merging the two."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from peft.utils import load_peft_weights
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.utils import find_adapter_config_file

DTYPES = ("auto", "float32", "bfloat16", "float16")
"""Names of the precisions to load a policy in; `auto` is the one that its files have."""


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
    Loads a policy for inference. A LoRA adapter is laid over its base model without merging.

    Args:
        model (`str` or `os.PathLike`):
            Folder of a model or of an adapter, or its name on the Hub.
        dtype (`str`, *optional*):
            One of `DTYPES`. By default `auto` on an accelerator and `float32` on the CPU.
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
        `FileNotFoundError`: There is no such folder, or the adapter's base is not there.
        `OSError`: The model can't be read.
        `ValueError`: The files lack weights of the model (it would answer with random ones), the adapter does not fit
        its base, an unknown dtype, or a device that is not there.
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
    Merges a LoRA adapter into its base and writes a plain model folder with the processor, whole or not at all.

    Args:
        adapter (`str` or `os.PathLike`):
            Folder of the adapter, or its name on the Hub.
        out (`str` or `os.PathLike`):
            Folder to write; it must not exist.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Precision of the merged weights, one of `DTYPES`; `auto` keeps the base's. In bfloat16 each sum is rounded,
            so that the merged model's scores differ slightly from those of base and adapter.

    Returns:
        `Path`: `out`.

    Raises:
        `FileExistsError`: `out` exists; nothing is overwritten.
        `FileNotFoundError`: There is no such adapter, or its base is not there.
        `ValueError`: `adapter` is a whole model, or a merged weight would not be finite.
    """
    name, out = _checked_name(adapter), Path(out)
    if os.path.lexists(out):
        raise FileExistsError(f"{out} exists and nothing is overwritten; name another folder by --out.")
    if _adapter_config(name) is None:
        raise ValueError(f"{name} has no adapter_config.json, so there is nothing to merge: name a LoRA adapter.")
    model, processor = load_policy(name, dtype=dtype, device="cpu")
    merged = model.merge_and_unload(safe_merge=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        merged.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
        unfinished.chmod(0o755)  # mkdtemp's folders are private
        os.rename(unfinished, out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return out


def adapter_base(model: str | os.PathLike) -> tuple[str, str, int | None]:
    """
    Says where the parts of a policy are.

    Args:
        model (`str` or `os.PathLike`):
            Folder or Hub name of a model or of a LoRA adapter.

    Returns:
        `tuple[str, str, int | None]`: The whole model, where the processor is, and the adapter's rank (`None` without
        an adapter).

    Raises:
        `FileNotFoundError`: There is no such folder, or the adapter's base is not there.
        `ValueError`: An adapter of another kind than LoRA.
    """
    name = _checked_name(model)
    adapter = _adapter_config(name)
    if adapter is None:
        return name, name, None
    if not isinstance(adapter, LoraConfig):
        raise ValueError(f"{name} is an adapter of the kind {adapter.peft_type}; only LoRA adapters are loaded.")
    base = _base_of(adapter, name)
    return base, name if _has_processor(name) else base, adapter.r


def end_tokens(model: PreTrainedModel, processor: ProcessorMixin) -> set[int]:
    """
    Collects the tokens that end an answer: the tokenizer's, and those that the model's generation settings name.

    Args:
        model (`PreTrainedModel`):
            Policy.
        processor (`ProcessorMixin`):
            Its processor.

    Returns:
        `set[int]`

    Raises:
        `ValueError`: There is none.
    """
    named: Any = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = {processor.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None}
    if not ends:
        raise ValueError(
            "Neither the tokenizer nor the model's generation config names an end token; set one of them."
        )
    return ends


def _checked_name(model: str | os.PathLike) -> str:
    name = os.fspath(model)
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or (os.sep != "/" and os.sep in name)
    if looks_local and not os.path.isdir(name):
        raise FileNotFoundError(f"There is no model folder {name}: correct the path, or give a name of the Hub.")
    return name


def _checked_device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # unknown, not built in, or not there
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"The device {name} can't be used ({reason}): name another one, for example cpu.") from error
    return device


def _adapter_config(name: str) -> PeftConfig | None:
    return None if find_adapter_config_file(name) is None else PeftConfig.from_pretrained(name)


def _base_of(adapter: PeftConfig, name: str) -> str:
    base = adapter.base_model_name_or_path
    try:
        return _checked_name(base or "")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"The adapter {name} needs its base model {base}, which is not there: correct `base_model_name_or_path` "
            "in its adapter_config.json."
        ) from error


def _has_processor(name: str) -> bool:
    files = ("processor_config.json", "preprocessor_config.json")
    return any(os.path.isfile(os.path.join(name, file)) for file in files)


def _with_adapter(base: PreTrainedModel, name: str, base_name: str) -> PeftModel:
    try:
        stored = set(load_peft_weights(name, device="cpu"))
        model = PeftModel.from_pretrained(base, name)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"The adapter {name} can't be laid over {base_name} ({error}).") from error
    differing = stored ^ set(get_peft_model_state_dict(model))
    if differing:  # PEFT only warns, and the rest of the adapter would do nothing
        raise ValueError(
            f"The adapter {name} does not fit its base {base_name} ({', '.join(sorted(differing)[:3])}, …): name the "
            "base that it was trained on in its adapter_config.json."
        )
    return model


def _load_whole(name: str, **options) -> PreTrainedModel:
    try:
        model, report = AutoModelForImageTextToText.from_pretrained(name, output_loading_info=True, **options)
    except (OSError, SafetensorError) as error:
        raise OSError(f"The model {name} can't be loaded ({error}): name a folder, or one of the Hub.") from error
    lacking = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if lacking:
        raise ValueError(
            f"{name} lacks weights of {type(model).__name__} ({', '.join(lacking[:5])}{', …' * (len(lacking) > 5)}): "
            "it would answer with random ones. Save the model anew."
        )
    return model
