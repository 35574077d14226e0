"""The model: is it there, does its processor load, can its rollouts share their prompt, and how large is it."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from .finding import Finding, Plan, ok, problem, warning

_FALLBACK_DTYPE = "float32"  # TRL loads models so where no dtype is named


class ModelSize(NamedTuple):
    """
    Size of a model.

    Args:
        parameters (`int`):
            Numbers in its weights.
        trainable (`int`):
            How many of them are trained; with an adapter those of the adapter.
        weight_bytes (`int`):
            Bytes of one number in memory and in a checkpoint.
        adapter (`bool`):
            Whether only the adapter is saved.
    """

    parameters: int
    trainable: int
    weight_bytes: int
    adapter: bool


def readable(size: float) -> str:
    """Bytes in words: `3.1 MiB`, `15.2 GiB`."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def check_model(plan: Plan) -> tuple[list[Finding], ModelSize | None]:
    """
    Builds the model without weights, and loads its processor. Nothing is fetched unless the plan allows it, and then
    only the small files.

    Args:
        plan ([`Plan`]):
            What is planned.

    Returns:
        `tuple[list[Finding], ModelSize | None]`: Findings, and the size, where it is known.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    from ..demo.policy import demo_policy_path

    name = plan.model or str(demo_policy_path())
    options = {"revision": getattr(plan.model_args, "model_revision", None) or "main"}
    options |= {"trust_remote_code": getattr(plan.args, "trust_remote_code", False)}
    options |= {"local_files_only": not plan.online}
    shown = "the bundled toy policy" if plan.model is None else name
    if os.path.isdir(name) and (fault := missing_weights(Path(name))):
        return [problem("model", f"{name}: {fault}", "fetch or save the model again")], None
    try:
        config = AutoConfig.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        return [_no_config(plan, name, error)], None
    if type(config) not in AutoModelForImageTextToText._model_mapping and not options["trust_remote_code"]:
        advice = "take a vision-language model, for example Qwen/Qwen2.5-VL-3B-Instruct"
        return [problem("model", f"{shown} is a {config.model_type}, which sees no images", advice)], None
    model = _without_weights(config, plan)
    found = [_processor(name, shown, options)]
    size, fault = measure(model, config, plan)
    if fault:
        found.append(problem("adapter", fault, "see lora_target_modules of the recipe"))
    whole = readable(size.parameters * size.weight_bytes)
    text = f"{shown}: {config.model_type}, {size.parameters:,} parameters, {whole} in {8 * size.weight_bytes} bits"
    found.append(ok("model", text + (f", {size.trainable:,} trained" if size.adapter else "")))
    return [*found, _sharing(model)], size


def missing_weights(folder: Path) -> str | None:
    """Says which files a model's folder lacks, `None` where it has its config and all weights."""
    if not (folder / "config.json").is_file():
        adapter = " (it is an adapter: train on its base model)" if (folder / "adapter_config.json").is_file() else ""
        return f"there is no config.json{adapter}"
    for index in folder.glob("*.index.json"):
        shards = set(json.loads(index.read_text())["weight_map"].values())
        if missing := sorted(shard for shard in shards if not (folder / shard).is_file()):
            return f"{missing[0]} is missing, which {index.name} names"
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
        return "there are no weights (*.safetensors)"
    return None


def _no_config(plan: Plan, name: str, error: Exception) -> Finding:
    from huggingface_hub import constants

    text = f"the config of {name} can't be read: {str(error).splitlines()[0]}"
    if os.path.isdir(name):
        return problem("model", text, "fetch or save the model again")
    if plan.online:
        return problem("model", text, "check the name, the network, and `hf auth login` for a gated model")
    text = f"{name} is neither a folder nor in the cache"
    if constants.HF_HUB_OFFLINE:
        return problem("model", f"{text}, and HF_HUB_OFFLINE is set", f"fetch it first: hf download {name}")
    advice = f"the training will fetch it; `hf download {name}` does it now, --online looks at its config only"
    return warning("model", text, advice)


def _without_weights(config: Any, plan: Plan) -> Any:
    import torch
    from transformers import AutoModelForImageTextToText

    attention = plan.attention or "sdpa"
    trusted = {"trust_remote_code": True} if getattr(plan.args, "trust_remote_code", False) else {}
    with torch.device("meta"):
        try:
            return AutoModelForImageTextToText.from_config(config, attn_implementation=attention, **trusted)
        except (ImportError, ValueError):  # an attention that is not installed, which check_attention reports
            return AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa", **trusted)


def measure(model: Any, config: Any, plan: Plan) -> tuple[ModelSize, str | None]:
    """The size of a model without weights, under the plan's adapter, and why the adapter can't be put on it."""
    from trl import get_peft_config

    parameters, fault = sum(p.numel() for p in model.parameters()), None
    trainable = parameters
    peft_config = None if plan.model_args is None else get_peft_config(plan.model_args)
    if peft_config is not None:
        from peft import get_peft_model

        try:
            adapted = get_peft_model(model, peft_config)
            trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
            adapted.unload()
        except ValueError as error:
            fault = str(error).splitlines()[0]
    return ModelSize(parameters, trainable, _weight_bytes(config, plan), peft_config is not None), fault


def _weight_bytes(config: Any, plan: Plan) -> int:
    import torch

    given = getattr(plan.args, "model_init_kwargs", None) or {}
    name = given.get("dtype") or getattr(plan.model_args, "dtype", None) or _FALLBACK_DTYPE
    if str(name) == "auto":
        name = config.dtype or _FALLBACK_DTYPE
    return getattr(torch, str(name).removeprefix("torch.")).itemsize


def _processor(name: str, shown: str, options: dict) -> Finding:
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(name, **options)
    except (OSError, ValueError, ImportError) as error:
        advice = "save the base model's processor beside the weights, or install the package that it names"
        return problem("processor", f"that of {shown} does not load: {str(error).splitlines()[0]}", advice)
    if not hasattr(processor, "image_processor"):
        return problem("processor", f"that of {shown} takes no images", "save the base model's processor beside it")
    if not processor.chat_template and not processor.tokenizer.chat_template:
        return problem("processor", f"that of {shown} has no chat template", "take an instruction-tuned model")
    return ok("processor", f"{type(processor).__name__} loads, with its chat template")


def _sharing(model: Any) -> Finding:
    from ..shared_prefix.support import model_problem

    reason = model_problem(model)
    if reason is None:
        return ok(
            "shared prefix", "the rollouts of a group can share their prompt, where the batch holds whole groups"
        )
    advice = "training works without; with shared_prefix on it would refuse to run (docs/performance.md)"
    return warning("shared prefix", f"not with this model: {reason}", advice)
