"""The recipe, the model, and the folder of the run with room for its checkpoints."""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..io.outputs import check_writable
from . import Finding, Plan, ok, problem, warning


class ModelSize(NamedTuple):
    """Size of a model; with an adapter only the adapter is trained and saved."""

    parameters: int
    trainable: int
    weight_bytes: int  # bytes per parameter in memory and in a checkpoint
    adapter: bool


def readable(size: float) -> str:
    """Format bytes: `3.1 MiB`, `15.2 GiB`."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def check_recipe(plan: Plan) -> Iterator[Finding]:
    """Parse the recipe as the training does, and complete the plan from it."""
    if plan.config is None:
        return
    options, fault = _parse("--config", plan.config)
    if options is not None:
        yield ok("recipe", f"{plan.config}: its keys are known and compatible")
    else:
        options, _ = _parse("--config", plan.config, "--use_cpu", "true", "--bf16", "false")
        if options is None:
            yield problem("recipe", fault, "correct the recipe; the packaged ones are in recipes/")
            return
        options.training_args.use_cpu, options.training_args.bf16 = False, True  # what the recipe asks for
        advice = "run it on a GPU; or, for a tiny model, pass --use_cpu true --bf16 false to the training"
        yield problem("recipe", f"it needs a GPU: {fault}", advice)
    plan.script_args, plan.args, plan.model_args, _ = options
    plan.model = plan.model or plan.model_args.model_name_or_path
    plan.data = plan.data or plan.script_args.dataset or plan.script_args.data_dir
    plan.output_dir = plan.output_dir or plan.args.output_dir


def _parse(*words: str) -> tuple[Any, str]:
    """The options of a training, or `None` and why they are refused."""
    from ..train.arguments import parse_arguments

    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return parse_arguments(words), ""
    except SystemExit:  # argparse has printed the reason
        return None, (stderr.getvalue().strip().splitlines() or ["the parser exited"])[-1]
    except (ValueError, OSError, TypeError) as error:
        return None, str(error)


def check_model(plan: Plan) -> Iterator[Finding]:
    """
    Build the model without weights, load its processor, and measure it.

    Nothing is downloaded unless the plan is online, and then only the small files.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    from ..demo.policy import demo_policy_path
    from ..shared_prefix.support import model_problem

    name = plan.model or str(demo_policy_path())
    shown = plan.model or "the bundled toy policy"
    trusted = bool(getattr(plan.args, "trust_remote_code", False))
    options: dict[str, Any] = {"trust_remote_code": trusted, "local_files_only": not plan.online}
    options["revision"] = getattr(plan.model_args, "model_revision", None) or "main"
    if os.path.isdir(name) and (fault := missing_weights(Path(name))):
        yield problem("model", f"{name}: {fault}", "download or save the model again")
        return
    try:
        config = AutoConfig.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        yield _why_no_config(plan, name, error)
        return
    if type(config) not in AutoModelForImageTextToText._model_mapping and not trusted:
        advice = "use a vision-language model, for example Qwen/Qwen2.5-VL-3B-Instruct"
        yield problem("model", f"{shown} is a {config.model_type}, which takes no images", advice)
        return
    model = _without_weights(config, plan.model_option("attn_implementation") or "sdpa", trusted)
    yield _check_processor(name, shown, options)
    plan.size, fault = measure(model, config, plan)
    if fault:
        yield problem("adapter", fault, "see lora_target_modules of the recipe")
    whole = readable(plan.size.parameters * plan.size.weight_bytes)
    text = f"{config.model_type}, {plan.size.parameters:,} parameters, {whole} in {8 * plan.size.weight_bytes} bits"
    trained = f", {plan.size.trainable:,} trained" if plan.size.adapter else ""
    yield ok("model", f"{shown}: {text}{trained}")
    if reason := model_problem(model):
        advice = "training works without it, but shared_prefix: on would raise an error (docs/performance.md)"
        yield warning("shared prefix", f"not with this model: {reason}", advice)
    else:
        yield ok("shared prefix", "the rollouts of a group can share their prompt if a batch holds whole groups")


def missing_weights(folder: Path) -> str | None:
    """Name what a model's folder lacks, `None` if it has its config and all weights."""
    if not (folder / "config.json").is_file():
        is_adapter = (folder / "adapter_config.json").is_file()
        return "there is no config.json" + " (it is an adapter: train on its base model)" * is_adapter
    for index in folder.glob("*.index.json"):
        shards = set(json.loads(index.read_text())["weight_map"].values())
        if missing := sorted(shard for shard in shards if not (folder / shard).is_file()):
            return f"{missing[0]}, listed in {index.name}, is missing"
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
        return "there are no weights (*.safetensors)"
    return None


def _why_no_config(plan: Plan, name: str, error: Exception) -> Finding:
    from huggingface_hub import constants

    text = f"the config of {name} can't be read: {str(error).splitlines()[0]}"
    if os.path.isdir(name):
        return problem("model", text, "download or save the model again")
    if plan.online:
        return problem("model", text, "check the name, the network, and `hf auth login` for a gated model")
    text = f"{name} is neither a folder nor in the cache"
    if constants.HF_HUB_OFFLINE:
        return problem("model", f"{text}, and HF_HUB_OFFLINE is set", f"download it first: hf download {name}")
    advice = f"the training will download it; `hf download {name}` does so now, --online reads only its config"
    return warning("model", text, advice)


def _without_weights(config: Any, attention: str, trusted: bool) -> Any:
    import torch
    from transformers import AutoModelForImageTextToText

    options = {"trust_remote_code": True} if trusted else {}
    with torch.device("meta"):
        try:
            return AutoModelForImageTextToText.from_config(config, attn_implementation=attention, **options)
        except (ImportError, ValueError):  # an attention that is not installed, which check_attention reports
            return AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa", **options)


def measure(model: Any, config: Any, plan: Plan) -> tuple[ModelSize, str | None]:
    """The size of a model without weights with the plan's adapter, and why the adapter can't be added."""
    import torch
    from trl import get_peft_config

    dtype = str(plan.model_option("dtype") or "float32")  # TRL's default
    if dtype == "auto":
        dtype = str(config.dtype or "float32")
    parameters = trainable = sum(p.numel() for p in model.parameters())
    fault = None
    peft_config = None if plan.model_args is None else get_peft_config(plan.model_args)
    if peft_config is not None:
        from peft import get_peft_model

        try:
            adapted = get_peft_model(model, peft_config)
            trainable = adapted.get_nb_trainable_parameters()[0]
            adapted.unload()
        except ValueError as error:
            fault = str(error).splitlines()[0]
    weight_bytes = getattr(torch, dtype.removeprefix("torch.")).itemsize
    return ModelSize(parameters, trainable, weight_bytes, peft_config is not None), fault


def _check_processor(name: str, shown: str, options: dict) -> Finding:
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(name, **options)
    except (OSError, ValueError, ImportError) as error:
        text = f"the processor of {shown} does not load: {str(error).splitlines()[0]}"
        advice = "save the base model's processor in the same folder, or install the package that it names"
        return problem("processor", text, advice)
    if not hasattr(processor, "image_processor"):
        text = f"the processor of {shown} takes no images"
        return problem("processor", text, "save the base model's processor in the same folder")
    if not processor.chat_template and not processor.tokenizer.chat_template:
        text = f"the processor of {shown} has no chat template"
        return problem("processor", text, "use an instruction-tuned model")
    return ok("processor", f"{type(processor).__name__} loads, with its chat template")


def checkpoint_bytes(size: ModelSize, optimizer: str, *, zero: bool = False, states: bool = True) -> int:
    """Estimate a checkpoint: the saved weights, and the optimizer's states of the trained ones if they are saved."""
    if not states or (optimizer.startswith(("sgd", "adafactor")) and not zero):
        per_parameter = 0  # Adafactor's are negligible
    elif zero:
        per_parameter = 12  # DeepSpeed: both moments and the weight itself in float32
    else:
        per_parameter = 2 * (1 if "8bit" in optimizer else size.weight_bytes)  # Adam's moments
    saved = size.trainable if size.adapter else size.parameters
    return saved * size.weight_bytes + per_parameter * size.trainable


def check_disk(plan: Plan) -> Iterator[Finding]:
    """Check that `output_dir` can be created and written to, and has room; nothing is left in it."""
    if plan.output_dir is None:
        return
    folder = Path(plan.output_dir).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    if not existing.is_dir():
        yield problem("output_dir", f"{existing} is not a folder", "choose another output_dir")
        return
    try:
        check_writable(existing)
    except OSError as error:
        text = f"{existing} can't be written to ({error.strerror or error})"
        yield problem("output_dir", text, "choose another output_dir")
        return
    if existing == folder and any(folder.iterdir()):
        advice = "choose another one, or resume the run in it with --resume_from_checkpoint true"
        yield warning("output_dir", f"{plan.output_dir} is not empty, and a new run refuses it", advice)
    yield _check_space(plan, shutil.disk_usage(existing).free)


def _check_space(plan: Plan, free: int) -> Finding:
    text = f"writable, {readable(free)} free"
    if plan.size is None:
        return ok("disk", f"{text}; the size of the checkpoints is unknown without the model")
    states = plan.args is None or not plan.args.save_only_model
    one = checkpoint_bytes(plan.size, plan.optimizer, zero="deepspeed" in plan.needs, states=states)
    final = checkpoint_bytes(plan.size, plan.optimizer, states=False)
    kept = _kept_checkpoints(plan)
    # one more than are kept: the oldest is removed when the newest is complete
    needed = final + (0 if kept == 0 else (kept + 1) * one)
    text += f"; a checkpoint is about {readable(one)}, {kept} of them and the final model take {readable(needed)}"
    if free < needed:
        advice = "free some, choose another disk, lower save_total_limit, or set save_only_model (no resume then)"
        return (problem if free < one else warning)("disk", text, advice)
    if kept > 1 and plan.args is not None and plan.args.save_total_limit is None:
        text += " (without save_total_limit every checkpoint is kept; this assumes 2)"
        return warning("disk", text, "set save_total_limit, or watch the disk")
    return ok("disk", text)


def _kept_checkpoints(plan: Plan) -> int:
    if plan.args is None:
        return 2
    if str(getattr(plan.args.save_strategy, "value", plan.args.save_strategy)) != "no":
        return plan.args.save_total_limit or 2
    # the training keeps the checkpoint that is best on the validation images even then
    best = plan.script_args is not None and plan.script_args.validate and plan.script_args.keep_best
    return plan.args.save_total_limit or 1 if best else 0
