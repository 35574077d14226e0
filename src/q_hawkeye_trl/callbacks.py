"""What a training run writes down while it goes on: a line a log, a short progress bar, figures before and after."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from transformers import ProgressCallback, TrainerCallback

from .checkpointing.staging import explained_write_errors
from .files import without_nan, write_atomically, write_json

METRICS_FILE = "metrics.jsonl"
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
    Appends every log of the trainer to `metrics.jsonl`, one JSON object a line with the `step` it belongs to. A
    resumed run begins by writing the file anew from the checkpoint's own history, so that no line is missing or stands
    there twice, whatever a crash left of it.

    Args:
        output_dir (`str` or `Path`):
            Folder of the run.
    """

    def __init__(self, output_dir: str | Path):
        self.path = Path(output_dir) / METRICS_FILE

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        # a run that had ended and goes on has no end yet
        kept = [line for line in state.log_history if "train_runtime" not in line]
        write_atomically(self.path, "".join(map(_line, kept)))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        with explained_write_errors(METRICS_FILE, self.path.parent), open(self.path, "a") as file:
            file.write(_line({**logs, "step": state.global_step}))


def _line(logs: Mapping) -> str:
    return json.dumps(without_nan({"step": logs["step"], **logs})) + "\n"


class BriefProgressCallback(ProgressCallback):
    """
    Transformers' progress bar, with the last values of a handful of metrics behind it in place of whole dictionaries
    between.
    """

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
    Measures the policy on held-out images before the first and after the last step. A resumed run keeps the figures
    that stand in its folder from before.

    Args:
        measure (`Callable[[], dict[str, float]]`):
            Measures the policy as it is; called on every rank.
        folder (`str` or `Path`):
            Folder of the run, where `before.json` is kept.
    """

    def __init__(self, measure: Callable[[], dict[str, float]], folder: str | Path):
        self.measure = measure
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


def read_metrics(path: str | Path) -> list[dict]:
    """
    Reads a `metrics.jsonl`.

    Args:
        path (`str` or `Path`):
            File; a missing one counts as empty.

    Returns:
        `list[dict]`: The whole lines in order; a last line that a crash cut off is left out.
    """
    path = Path(path)
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
