"""Validation while training: the held-out figures take the place of TRL's evaluation loop."""

import time
from typing import Any

from transformers.trainer_utils import EvalLoopOutput

from .sharded import evaluate_sharded

BEST_METRIC = "srcc_sampled"
"""The figure that picks the best checkpoint by default: training rewards sampled answers, and sharpens them."""


class Validation:
    """
    What [`HawkeyeGRPOTrainer`] measures at each evaluation: SRCC and PLCC of sampled and greedy answers, parse rate
    and spread on `eval_dataset`, shared out over the processes.

    The figures come out of `trainer.evaluate()` as `eval_srcc_sampled`, `eval_plcc_sampled`, `eval_srcc_greedy`,
    `eval_plcc_greedy`, `eval_parse_rate` and `eval_spread`. So everything of transformers works on them: when
    (`eval_strategy`, `eval_steps`, `eval_on_start`), every tracker of `report_to`, the best checkpoint
    (`metric_for_best_model`, `greater_is_better`, `load_best_model_at_end`, `save_strategy="best"`),
    [`~transformers.EarlyStoppingCallback`], and several sets at once (`eval_dataset` as a dictionary, whose names go
    into the keys). TRL's own loop, which would generate a group for each image only to report reward and loss, does
    not run.

    Args:
        batch_size (`int`, *optional*, defaults to `64`):
            Images generated for at once on each process.
        passes (`int`, *optional*, defaults to `4`):
            Sampled answers an image; the spread needs two.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the samples, the same at each evaluation, so that figures differ by the policy alone.

    Raises:
        `ValueError`: A number below 1.

    Example:

    ```python
    args = HawkeyeGRPOConfig(
        output_dir="runs/koniq", eval_strategy="steps", eval_steps=100, save_strategy="best",
        load_best_model_at_end=True, metric_for_best_model="srcc_sampled", greater_is_better=True,
    )
    trainer = HawkeyeGRPOTrainer(..., args=args, eval_dataset=validation_rows, validation=Validation())
    ```
    """

    def __init__(self, *, batch_size: int = 64, passes: int = 4, seed: int = 0):
        for name, value in (("batch_size", batch_size), ("passes", passes)):
            if value < 1:
                raise ValueError(f"`{name}` of the validation must be at least 1, got {value}.")
        self.batch_size = batch_size
        self.passes = passes
        self.seed = seed
        self.seconds = 0.0
        """Time that the evaluations have taken so far."""

    def evaluate(self, trainer: Any, rows: Any, prefix: str) -> EvalLoopOutput:
        """
        Measures the trainer's policy; every rank must call it and gets the same figures.

        Args:
            trainer ([`HawkeyeGRPOTrainer`]):
                The trainer.
            rows (`Dataset`):
                Rows with `prompt`, `image` or `images`, and `mos`.
            prefix (`str`):
                Prefix of the keys, `"eval"` or `"eval_NAME"`.

        Returns:
            [`~transformers.trainer_utils.EvalLoopOutput`]: What `Trainer.evaluation_loop` returns.

        Raises:
            `ValueError`: The rows are a stream, or have no `mos`.
        """
        columns = getattr(rows, "column_names", None) or []
        if not hasattr(rows, "select") or "mos" not in columns:
            raise ValueError(
                "Validation needs an eval_dataset that is a `Dataset` (no stream) with a `mos` column, got "
                f"{type(rows).__name__} with the columns {', '.join(columns) or 'none'}."
            )
        started = time.perf_counter()
        trainer.model.eval()  # by it `log` tells evaluation from training; the next training step turns it back
        figures = evaluate_sharded(
            trainer,
            rows,
            batch_size=self.batch_size,
            passes=self.passes,
            seed=self.seed,
            score_fn=trainer.score_fn,
            progress=not trainer.args.disable_tqdm,
        )
        self.seconds += time.perf_counter() - started
        metrics = {f"{prefix}_{name}": value for name, value in figures.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(rows))
