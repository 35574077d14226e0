"""The facts of each launch of a run, in its `run.json`: what it runs, on what, and on which data."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ..io.atomic import write_json
from .fingerprint import describe_data
from .machine import device_facts, git_state, package_versions, platform_facts
from .settings import changed_settings, hide_secrets, settings_of

FACTS_FILE = "run.json"
SHOWN_PACKAGES = ("q-hawkeye-trl", "trl", "transformers", "torch", "accelerate", "peft", "deepspeed", "datasets")
_EXPECTED_TO_CHANGE = ("started", "resumed_at_step", "changed")
_RESUME_SETTING = "resume_from_checkpoint"


class RunFactsCallback(TrainerCallback):
    """
    Write the facts of a run to `run.json` in its `output_dir` when the training begins, and print a summary.

    A resumed run appends its facts to those of earlier launches, and reports what changed.

    Args:
        trainer ([`HawkeyeGRPOTrainer`] or [`~trl.GRPOTrainer`]):
            Trainer that the callback is added to.
        settings (dataclass instances):
            Further settings than `trainer.args`.
        data (`Dataset`):
            Further data than the trainer's own, named by use.

    Example:

    ```python
    trainer.add_callback(RunFactsCallback(trainer, script_args, model_args, held_out=held_out))
    ```
    """

    def __init__(self, trainer: Any, *settings: Any, **data: Any):
        self.trainer, self.settings, self.data = trainer, settings, data

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        facts = launch_facts(self.trainer, self.settings, self.data)
        before = append_launch(args.output_dir, facts)
        lines = describe_launch(facts, number=len(before) + 1)
        if before:
            lines += [f"  changed since launch {len(before)}: {line}" for line in differences(before[-1], facts)]
        print("\n".join(lines), flush=True)


def launch_facts(trainer: Any, settings: tuple = (), data: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """
    Collect the facts of a training that is about to begin, without environment variables and secrets.

    Args:
        trainer ([`HawkeyeGRPOTrainer`] or [`~trl.GRPOTrainer`]):
            Trainer.
        settings (`tuple` of dataclass instances, *optional*):
            Further settings than `trainer.args`.
        data (`Mapping[str, Dataset]`, *optional*):
            Further data than the trainer's own, by use, e.g. `{"held_out": dataset}`.

    Returns:
        `dict`: Sections `started` (UTC), `resumed_at_step`, `versions`, `platform`, `git`, `device`, `processes`,
        `model`, `batch`, `seeds`, `data`, `settings` (all, by class and name) and `changed` (names of those that
        differ from their defaults, by class).
    """
    args = trainer.args
    every = (args, *settings)
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "resumed_at_step": trainer.state.global_step or None,
        "versions": package_versions(),
        "platform": platform_facts(),
        "git": git_state(),
        "device": device_facts(trainer.accelerator.device.type),
        "processes": _processes(trainer),
        "model": _model(trainer),
        "batch": _batch(trainer),
        "seeds": {
            "seed": args.seed,
            "data_seed": args.data_seed,
            "degradation_seed": getattr(args, "degradation_seed", None),  # stock GRPO has none
        },
        "data": {use: describe_data(rows) for use, rows in _data(trainer, data or {}).items()},
        "settings": {type(each).__name__: settings_of(each) for each in every},
        "changed": {type(each).__name__: changed_settings(each) for each in every},
    }


def _processes(trainer: Any) -> dict[str, Any]:
    state = trainer.accelerator.state
    initialized = torch.distributed.is_available() and torch.distributed.is_initialized()
    plugin = state.deepspeed_plugin
    return {
        "world_size": state.num_processes,
        "distributed_type": state.distributed_type.value,
        "backend": torch.distributed.get_backend() if initialized else None,
        "zero_stage": None if plugin is None else plugin.zero_stage,
        "mixed_precision": state.mixed_precision,
    }


def _model(trainer: Any) -> dict[str, Any]:
    model = trainer.accelerator.unwrap_model(trainer.model)
    config = model.config
    sizes = [(_true_size(p), p.requires_grad) for p in model.parameters()]
    shares = getattr(trainer, "_shares_prefix", None)
    return {
        "name": hide_secrets(config._name_or_path),
        "type": config.model_type,
        "parameters": sum(size for size, _ in sizes),
        "trainable": sum(size for size, trainable in sizes if trainable),
        "dtypes": sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()}),
        "attention": config._attn_implementation,
        "shares_prompt": None if shares is None else shares["train"],
    }


def _true_size(parameter: torch.nn.Parameter) -> int:
    """Numbers in a parameter: ZeRO-3 leaves an empty tensor, and 4-bit weights are packed into wider ones."""
    if type(parameter).__name__ == "Params4bit":
        return parameter.numel() * 2 * parameter.element_size()
    return getattr(parameter, "ds_numel", parameter.numel())


def _batch(trainer: Any) -> dict[str, Any]:
    args = trainer.args
    rollouts = args.per_device_train_batch_size * args.gradient_accumulation_steps * trainer.accelerator.num_processes
    return {
        "rollouts_per_step": rollouts,
        "rollouts_per_prompt": trainer.num_generations,
        "prompts_per_step": rollouts / trainer.num_generations,
        "steps_per_generation": args.steps_per_generation,
        "num_iterations": args.num_iterations,
    }


def _data(trainer: Any, further: Mapping[str, Any]) -> dict[str, Any]:
    evaluated = trainer.eval_dataset
    parts = {"train": trainer.train_dataset}
    if isinstance(evaluated, Mapping):
        parts |= {f"validation/{name}": rows for name, rows in evaluated.items()}
    else:
        parts["validation"] = evaluated
    return {use: rows for use, rows in (parts | dict(further)).items() if rows is not None}


def append_launch(folder: str | Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Add the facts of a launch to the folder's `run.json`, atomically, and return those of earlier launches."""
    path = Path(folder) / FACTS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    before = read_launches(path) if path.exists() else []
    write_json(path, {"launches": [*before, facts]})
    return before


def read_launches(path: str | Path) -> list[dict[str, Any]]:
    """
    Read a `run.json`.

    Args:
        path (`str` or `Path`):
            The file.

    Returns:
        `list[dict]`: Facts of the launches, oldest first.

    Raises:
        `OSError`: The file can't be read.
        `ValueError`: It was not written by [`append_launch`].
    """
    try:
        launches = json.loads(Path(path).read_text(encoding="utf-8"))["launches"]
        if not isinstance(launches, list):
            raise TypeError(f"launches is {type(launches).__name__}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not hold the facts of a run ({error!r}): rename it, or restore it.") from error
    return launches


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """List what differs between two launches, like `versions.trl: 1.16.0 -> 1.16.1`, but for their start and step."""
    old, new = _flat(before), _flat(now)
    return [
        f"{name}: {_short(old.get(name))} -> {_short(new.get(name))}"
        for name in dict.fromkeys((*old, *new))
        if old.get(name) != new.get(name)
    ]


def _flat(facts: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in facts.items():
        if (not prefix and key in _EXPECTED_TO_CHANGE) or key == _RESUME_SETTING:
            continue
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def describe_launch(facts: dict[str, Any], number: int = 1) -> list[str]:
    """Summarize the facts of a launch, the run's `number`-th, in lines of plain text."""
    batch, model, step = facts["batch"], facts["model"], facts["resumed_at_step"]
    after = "" if step is None else f", resumed at step {step}"
    shares = "" if not model["shares_prompt"] else ", prompts shared"
    rows = describe_facts(facts) | {
        "processes": _describe_processes(facts["processes"]),
        "model": f"{model['name'] or model['type']}: {model['parameters']:,} parameters, {model['trainable']:,} of "
        f"them trained, {' and '.join(model['dtypes'])}, {model['attention']}{shares}",
        "batch": f"{batch['prompts_per_step']:g} prompts x {batch['rollouts_per_prompt']} rollouts a step",
    }
    width = max(map(len, rows))
    title = f"Launch {number} of this run{after}; details in {FACTS_FILE}:"
    return [title, *(f"  {name:<{width}}  {text}" for name, text in rows.items())]


def describe_facts(facts: dict[str, Any]) -> dict[str, str]:
    """Summarize, by name, the facts known without a trainer; all but `versions`, `platform` and `git` are optional."""
    versions = facts["versions"]
    packages = [f"{name} {versions[name] or 'missing'}" for name in SHOWN_PACKAGES]
    rows = {
        "code": _describe_git(facts["git"]),
        "versions": ", ".join([f"python {facts['platform']['python']}", *packages]),
    }
    if "device" in facts:
        rows["device"] = _describe_device(facts)
    if "seeds" in facts:
        rows["seeds"] = ", ".join(f"{name} {_short(seed)}" for name, seed in facts["seeds"].items())
    if "changed" in facts:
        rows["settings"] = f"{sum(map(len, facts['changed'].values()))} differ from their defaults"
    return rows | {f"{use} data": _describe_part(part) for use, part in facts.get("data", {}).items()}


def _describe_git(git: dict[str, Any] | None) -> str:
    if git is None:
        return "not in a git checkout"
    commit = "no commit yet" if git["commit"] is None else f"commit {git['commit'][:12]}"
    return commit + (", with uncommitted changes" if git["dirty"] else "")


def _describe_device(facts: dict[str, Any]) -> str:
    device = facts["device"]
    if "names" not in device:
        return f"{device['kind']}, {facts['platform']['cores']} cores, {device['threads']} threads of torch"
    devices = list(zip(device["names"], device["memory_gib"], strict=True))
    kinds = [f"{devices.count(kind)} x {kind[0]} ({kind[1]:g} GiB)" for kind in dict.fromkeys(devices)]
    return f"{', '.join(kinds)}, CUDA {device['cuda'] or '-'}, driver {device['driver'] or '-'}"


def _describe_processes(processes: dict[str, Any]) -> str:
    wrapper = "" if processes["distributed_type"] == "NO" else f", {processes['distributed_type']}"
    if processes["zero_stage"] is not None:
        wrapper = f", DeepSpeed ZeRO-{processes['zero_stage']}"
    backend = "" if processes["backend"] is None else f" on {processes['backend']}"
    return f"{processes['world_size']}{wrapper}{backend}, mixed precision {processes['mixed_precision']}"


def _describe_part(part: dict[str, Any]) -> str:
    rows = f"{part['rows']:,} rows, " if "rows" in part else ""
    if part["sha256"] is None:
        return f"{rows}no fingerprint: {part['reason']}"
    return f"{rows}{part['images']:,} images of {part['image_bytes'] / 2**20:,.1f} MiB, sha256 {part['sha256'][:12]}"
