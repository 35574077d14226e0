"""The end of a run: `summary.json`, learning curves, the model's card, the printed table, and its exit status."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import ModelConfig

from ..checkpointing.checkpoint_files import resume_hint
from ..errors import TrainingError, TrainingInterrupted
from ..evaluation.validation import BEST_METRIC
from ..io.atomic import write_json
from ..process_exit import end_processes
from ..report.model_card import CARD_FILE, data_part, recipe_of, write_model_card
from ..report.plots import plot_curves
from ..trainer import HawkeyeGRPOTrainer
from ..wording import before_after_table
from .arguments import ScriptArguments
from .callbacks import HeldOutCallback
from .run_folder import METRICS_FILE, read_metrics


@contextlib.contextmanager
def short_errors(program: str) -> Iterator[None]:
    """Exit with the message of an expected error, without a traceback unless `Q_HAWKEYE_TRACEBACK` is set."""
    try:
        yield
    except (ValueError, OSError, TrainingError) as error:
        if os.environ.get("Q_HAWKEYE_TRACEBACK"):
            raise
        sys.exit(f"{program}: {error}")


@contextlib.contextmanager
def clean_stop(trainer: HawkeyeGRPOTrainer) -> Iterator[None]:
    """End the process group if a signal stops the training; print a line instead of a traceback for Ctrl-C."""
    try:
        yield
    except TrainingInterrupted as stopped:
        end_processes(trainer.accelerator, status=128 + stopped.signal)
        raise
    except KeyboardInterrupt:
        if trainer.accelerator.is_main_process:
            print(f"\nStopped after step {trainer.state.global_step}. {resume_hint(trainer.args.output_dir)}")
        sys.exit(128 + signal.SIGINT)


def write_outcome(
    trainer: HawkeyeGRPOTrainer,
    script_args: ScriptArguments,
    model_args: ModelConfig,
    measured: HeldOutCallback,
    *,
    started: float,
    resumed: bool,
) -> None:
    """
    Write `summary.json`, the curves and the model's card, and print the table of held-out figures; on the main
    process, where the others do nothing.

    Args:
        trainer ([`HawkeyeGRPOTrainer`]):
            Trainer after `train()` and `save_model()`.
        script_args ([`ScriptArguments`]), model_args ([`~trl.ModelConfig`]):
            Options of the run.
        measured ([`HeldOutCallback`]):
            As [`~callbacks.add_run_callbacks`] returned it.
        started (`float`):
            Time at which the run started, in seconds of `time.time()`.
        resumed (`bool`):
            Whether the run resumed from a checkpoint.
    """
    if not trainer.accelerator.is_main_process:
        return
    args, state, folder = trainer.args, trainer.state, Path(trainer.args.output_dir)
    held_out, after, seconds = measured.rows, measured.after, time.time() - started
    assert held_out is not None
    assert after is not None
    best = None
    if args.load_best_model_at_end and state.best_model_checkpoint is not None:
        best = {"step": state.best_global_step, "name": args.metric_for_best_model, "value": state.best_metric}
    packages = ("q-hawkeye-trl", "trl", "transformers", "torch", "datasets", "tokenizers")
    summary = {
        "before": measured.before,
        "after": after,
        "best": best,
        "seconds": round(seconds, 1),
        "validation_seconds": round(trainer.validation.seconds, 1) if trainer.validation else 0.0,
        "seed": args.seed,
        "held_out_images": len(held_out),
        "versions": {name: version(name) for name in packages},
    }
    write_json(folder / "summary.json", summary)
    plot_curves(read_metrics(folder / METRICS_FILE), folder / "curves.png", title=folder.name)
    _write_card(script_args, model_args, trainer, held_out, summary, resumed=resumed)
    print(f"\n{before_after_table(measured.before, after, len(held_out))}\n")
    if best is not None:
        print(f"The checkpoint of step {best['step']} is the best one by {best['name']}: {best['value']:.3f}.")
    print(f"{seconds:.0f} seconds, seed {args.seed}. In {folder}:")
    print(f"  summary.json   these figures\n  {METRICS_FILE}  every log\n  curves.png     the learning curves")
    print(f"  {CARD_FILE}      the model's card: data, recipe, versions, evaluation")
    print("  model.safetensors, config.json and the processor: load the folder with from_pretrained")


def _write_card(
    script_args: ScriptArguments,
    model_args: ModelConfig,
    trainer: HawkeyeGRPOTrainer,
    held_out: Dataset,
    summary: Mapping[str, Any],
    *,
    resumed: bool,
) -> None:
    args, folder = trainer.args, Path(trainer.args.output_dir)
    model = recipe_of(model_args)
    base_model = model.get("model_name_or_path")
    start = "the project's bundled toy policy" if base_model is None else base_model
    if base_model is not None and Path(base_model).exists():  # a folder of this machine does not belong in the card
        start, base_model = f"a local model, folder {Path(model.pop('model_name_or_path')).name}", None
    parts = (
        ("training", "train", trainer.train_dataset),
        ("validation", "validation", trainer.eval_dataset),
        ("evaluation", script_args.held_out_split, held_out),
    )
    write_model_card(
        folder,
        name=folder.name,
        method={"name": trainer._name, **trainer._paper},
        start=start,
        base_model=base_model,
        tags=trainer._tag_names,
        data={
            "source": _source_of(script_args),
            "score_min": args.score_min,
            "score_max": args.score_max,
            "mos_scale": script_args.mos_scale if script_args.dataset is None else None,
            "parts": [data_part(use, split, rows["mos"]) for use, split, rows in parts if rows is not None],
        },
        recipe=recipe_of(
            args,
            **model,
            rewards=script_args.rewards,
            reward_parameters=script_args.reward_parameters,
        ),
        validation=[line for line in read_metrics(folder / METRICS_FILE) if f"eval_{BEST_METRIC}" in line],
        steps=trainer.state.global_step,
        resumed=resumed,
        **{key: summary[key] for key in ("before", "after", "best", "seed", "seconds", "versions")},
    )


def _source_of(script_args: ScriptArguments) -> str:
    """Where the images come from, without parent folders."""
    if script_args.dataset is not None:
        return f"Prepared data, folder {Path(script_args.dataset).name}"
    if script_args.data_dir is not None:
        return f"KonIQ-10k's layout, folder {Path(script_args.data_dir).name}"
    return "The project's synthetic set in KonIQ-10k's layout"
