"""`run.json`, which keeps the facts of every launch of a run, and the lines that are printed of them."""

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..files import write_json
from .launch import launch_facts

FACTS_FILE = "run.json"
SHOWN_PACKAGES = ("q-hawkeye-trl", "trl", "transformers", "torch", "accelerate", "peft", "deepspeed", "datasets")
_EXPECTED_TO_CHANGE = ("started", "resumed_at_step", "changed")
_RESUME_SETTING = "resume_from_checkpoint"


class RunFactsCallback(TrainerCallback):
    """
    Writes the facts of a run to `run.json` in its `output_dir` when the training begins, and prints a few lines of
    them. A resumed run adds its facts to those of the launches before, and says what is not as it was.

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
            lines += [f"  not as in launch {len(before)}: {line}" for line in differences(before[-1], facts)]
        print("\n".join(lines), flush=True)


def append_launch(folder: str | Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """
    Adds the facts of a launch to those in the folder's `run.json`, atomically.

    Args:
        folder (`str` or `Path`):
            Folder of the run; it is made.
        facts (`dict`):
            As [`~launch.launch_facts`] returns them.

    Returns:
        `list[dict]`: The launches before, oldest first.

    Raises:
        `ValueError`: The file that is there is not one of ours; it is left as it is.
        `OSError`: The file can't be read or written.
    """
    path = Path(folder) / FACTS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    before = read_launches(path) if path.exists() else []
    write_json(path, {"launches": [*before, facts]})
    return before


def read_launches(path: str | Path) -> list[dict[str, Any]]:
    """
    Reads a `run.json`.

    Args:
        path (`str` or `Path`):
            The file.

    Returns:
        `list[dict]`: Facts of the launches, oldest first.

    Raises:
        `OSError`: The file can't be read.
        `ValueError`: It is not what [`append_launch`] writes.
    """
    try:
        launches = json.loads(Path(path).read_text(encoding="utf-8"))["launches"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not the facts of a run ({error!r}), and nothing is overwritten: move it to another name."
        ) from error
    if not isinstance(launches, list):
        raise ValueError(f"{path}: expected a list `launches`, found {type(launches).__name__}: move it away.")
    return launches


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """
    Lists what differs between two launches of a run, apart from when they started and from where they went on.

    Args:
        before (`dict`), now (`dict`):
            Facts of launches.

    Returns:
        `list[str]`: Lines like `versions.trl: 1.16.0 -> 1.16.1`.
    """
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
    """
    Says the facts in a few lines.

    Args:
        facts (`dict`):
            As [`~launch.launch_facts`] returns them.
        number (`int`, *optional*, defaults to `1`):
            Which launch of the run it is.

    Returns:
        `list[str]`: Lines of plain text.
    """
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
    title = f"Launch {number} of this run{after}; in full in its {FACTS_FILE}:"
    return [title, *(f"  {name:<{width}}  {text}" for name, text in rows.items())]


def describe_facts(facts: dict[str, Any]) -> dict[str, str]:
    """
    Says in a line each what is known without a trainer.

    Args:
        facts (`dict`):
            Sections of [`~launch.launch_facts`]; all but `versions`, `platform` and `git` can be missing.

    Returns:
        `dict[str, str]`: Text by name.
    """
    rows = {"code": describe_git(facts["git"]), "versions": describe_versions(facts)}
    if "device" in facts:
        rows["device"] = describe_device(facts)
    if "seeds" in facts:
        rows["seeds"] = ", ".join(f"{name} {_short(seed)}" for name, seed in facts["seeds"].items())
    if "changed" in facts:
        rows["settings"] = f"{sum(map(len, facts['changed'].values()))} differ from their defaults"
    return rows | {f"{use} data": _describe_part(part) for use, part in facts.get("data", {}).items()}


def describe_git(git: dict[str, Any] | None) -> str:
    """The commit in words."""
    if git is None:
        return "not in a git checkout"
    commit = "no commit yet" if git["commit"] is None else f"commit {git['commit'][:12]}"
    return commit + (", with changes that are not committed" if git["dirty"] else "")


def describe_versions(facts: dict[str, Any]) -> str:
    """Python and the main packages, with the missing ones."""
    versions = facts["versions"]
    found = [f"{name} {versions[name] or 'missing'}" for name in SHOWN_PACKAGES]
    return ", ".join([f"python {facts['platform']['python']}", *found])


def describe_device(facts: dict[str, Any]) -> str:
    """GPUs, or cores and threads."""
    device = facts["device"]
    if "names" not in device:
        return f"{device['kind']}, {facts['platform']['cores']} cores, {device['threads']} threads of torch"
    kinds = dict.fromkeys(zip(device["names"], device["memory_gib"], strict=True))
    listed = [
        f"{sum(pair == kind for pair in zip(device['names'], device['memory_gib'], strict=True))} x {kind[0]} "
        f"({kind[1]:g} GiB)"
        for kind in kinds
    ]
    return f"{', '.join(listed)}, CUDA {device['cuda'] or '-'}, driver {device['driver'] or '-'}"


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
