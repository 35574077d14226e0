"""What a training writes while it runs: a line per log, a short progress bar, figures before and after."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import EarlyStoppingCallback, ProgressCallback, TrainerCallback

from ..checkpointing.staging import explained_write_errors
from ..checkpointing.stop_on_signal import StopOnSignalCallback
from ..evaluation.validation import evaluate_sharded
from ..io.atomic import without_nan, write_json, write_text
from ..io.journal import append_line
from ..run_facts.launches import RunFactsCallback
from ..trainer import HawkeyeGRPOTrainer
from .arguments import ScriptArguments
from .run_folder import METRICS_FILE

SHOWN = {
    "reward": "reward",
    "scores/srcc": "SRCC",
    "scores/spread": "spread",
    "scores/parse_rate": "parsed",
    "perception/kl": "KL",
    "eval_srcc_sampled": "validation SRCC",
}
"""Metrics on the progress bar, with their short names."""


class MetricsFileCallback(TrainerCallback):
    """
    Append every log of the trainer to `metrics.jsonl`, a JSON object per line with its `step`.

    A resumed run first rewrites the file from the checkpoint's history, so that no line is missing or repeated.

    Args:
        output_dir (`str` or `Path`):
            Folder of the run.
    """

    def __init__(self, output_dir: str | Path):
        self.path = Path(output_dir) / METRICS_FILE

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        # the history of a finished run that resumes has the summary of its end
        kept = [line for line in state.log_history if "train_runtime" not in line]
        write_text(self.path, "".join(json.dumps(without_nan({"step": line["step"], **line})) + "\n" for line in kept))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        with explained_write_errors(METRICS_FILE, self.path.parent):
            append_line(self.path, without_nan({"step": state.global_step, **logs}), sync=False)


class BriefProgressCallback(ProgressCallback):
    """Show the last values of a few metrics on transformers' progress bar, instead of printing each log."""

    def __init__(self):
        super().__init__()
        self.shown: dict[str, str] = {}

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None:
            new = {short: logs[key] for key, short in SHOWN.items() if logs.get(key) is not None}
            self.shown |= {short: f"{value:.3f}" for short, value in new.items()}
            self.training_bar.set_postfix(self.shown)


class HeldOutCallback(TrainerCallback):
    """
    Measure the policy on held-out images before the first and after the last step; a resumed run keeps the earlier
    figures of its folder.

    Args:
        measure (`Callable[[], dict[str, float]]`):
            Measures the policy as it is; called on every rank.
        folder (`str` or `Path`):
            Folder of the run, for `before.json`.
        rows (`Dataset`, *optional*):
            The images measured.
    """

    def __init__(self, measure: Callable[[], dict[str, float]], folder: str | Path, rows: Dataset | None = None):
        self.measure = measure
        self.rows = rows
        self.before_path = Path(folder) / "before.json"
        self.before: dict[str, float] | None = None
        self.after: dict[str, float] | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step > 0:
            self.before = json.loads(self.before_path.read_text()) if self.before_path.is_file() else None
            return
        self.before = self.measure()
        if state.is_world_process_zero:
            write_json(self.before_path, self.before)

    def on_train_end(self, args, state, control, **kwargs):
        self.after = self.measure()


def add_run_callbacks(
    trainer: HawkeyeGRPOTrainer, script_args: ScriptArguments, model_args: Any, held_out: Dataset
) -> HeldOutCallback:
    """
    Let a trainer record its run (`run.json`, `metrics.jsonl`, held-out figures) and stop on signals and early.

    Args:
        trainer ([`HawkeyeGRPOTrainer`]):
            Trainer before `train()`.
        script_args ([`ScriptArguments`]), model_args ([`~trl.ModelConfig`]):
            Options, recorded in `run.json`.
        held_out (`Dataset`):
            Images that are measured before and after training.

    Returns:
        [`HeldOutCallback`]: Has the held-out figures.
    """
    folder, batch_size = trainer.args.output_dir, script_args.held_out_batch_size
    measured = HeldOutCallback(lambda: evaluate_sharded(trainer, held_out, batch_size=batch_size), folder, held_out)
    trainer.remove_callback(ProgressCallback)
    for callback in (
        RunFactsCallback(trainer, script_args, model_args, held_out=held_out),
        BriefProgressCallback(),
        MetricsFileCallback(folder),
        measured,
        StopOnSignalCallback(),
    ):
        trainer.add_callback(callback)
    if script_args.early_stopping_patience is not None and trainer.eval_dataset is not None:
        trainer.add_callback(EarlyStoppingCallback(script_args.early_stopping_patience))
    return measured
