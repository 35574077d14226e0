"""Validation while training: held-out figures in place of TRL's evaluation loop, shared out over the processes."""

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from datasets import Dataset
from transformers.trainer_utils import EvalLoopOutput
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation

from ..generation.engine import Conversation, PolicyAnswers
from .held_out import answer_scores, conversation_of, held_out_metrics

BEST_METRIC = "srcc_sampled"
"""The figure that picks the best checkpoint by default: training rewards sampled answers, and sharpens them."""


class Validation:
    """
    What [`HawkeyeGRPOTrainer`] measures at each evaluation, on the rows of `eval_dataset`.

    The figures of [`~evaluation.held_out.held_out_metrics`] come out of `trainer.evaluate()` as `eval_srcc_sampled`,
    `eval_plcc_sampled`, `eval_srcc_greedy`, `eval_plcc_greedy`, `eval_parse_rate` and `eval_spread`. All of
    transformers works on them: when to evaluate (`eval_strategy`, `eval_steps`, `eval_on_start`), the trackers of
    `report_to`, the best checkpoint (`metric_for_best_model`, `load_best_model_at_end`, `save_strategy="best"`),
    [`~transformers.EarlyStoppingCallback`], and several sets (`eval_dataset` as a dictionary, whose names go into the
    keys). TRL's own loop, which generates a group for each image to report reward and loss, does not run.

    Args:
        batch_size (`int`, *optional*, defaults to `64`):
            Answers generated at once on each process.
        passes (`int`, *optional*, defaults to `4`):
            Sampled answers to each image; the spread needs two.
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
        self.batch_size, self.passes, self.seed = batch_size, passes, seed
        self.seconds = 0.0
        """Time that the evaluations have taken so far."""

    def evaluate(self, trainer: Any, rows: Any, prefix: str) -> EvalLoopOutput:
        """
        Measure the trainer's policy. Every rank must call it and gets the same figures.

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
        trainer.model.eval()  # `log` tells evaluation from training by it; the next training step turns it back
        figures = evaluate_sharded(
            trainer,
            rows,
            batch_size=self.batch_size,
            passes=self.passes,
            seed=self.seed,
            progress=not trainer.args.disable_tqdm,
        )
        self.seconds += time.perf_counter() - started
        metrics = {f"{prefix}_{name}": value for name, value in figures.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(rows))


def evaluate_sharded(
    trainer: GRPOTrainer,
    rows: Dataset,
    *,
    batch_size: int,
    passes: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, float]:
    """
    Measure the policy of a trainer on held-out images. Every rank must call it and gets the same figures.

    Args:
        trainer ([`HawkeyeGRPOTrainer`]):
            Trainer within `train()`, so that the model is wrapped for its backend.
        rows (`Dataset`):
            N rows with `prompt`, `image` or `images`, and `mos`.
        batch_size (`int`):
            Answers generated at once on each process.
        passes (`int`, *optional*, defaults to `4`):
            Sampled answers to each image.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the samples.
        progress (`bool`, *optional*, defaults to `True`):
            Whether the main process shows a progress bar.

    Returns:
        `dict[str, float]`: As [`~evaluation.held_out.held_out_metrics`].
    """
    accelerator, args = trainer.accelerator, trainer.args
    own = _share(len(rows), accelerator.process_index, accelerator.num_processes)
    options = {
        "batch_size": batch_size,
        "score_fn": trainer.score_fn,
        "progress": progress and accelerator.is_main_process,
    }
    # the prompt of the config replaces those of the rows
    prompt = None if args.prompt is None else trainer.question.messages()
    conversations = _Conversations(rows, own, prompt)
    length = {"max_new_tokens": trainer.max_completion_length}
    with unwrap_model_for_generation(
        trainer.model_wrapped,
        accelerator,
        gather_deepspeed3_params=args.ds3_gather_for_generation,
        gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,  # turned off meanwhile, and on again
    ) as model:
        sampling = PolicyAnswers(model, trainer.processing_class, rollouts=passes, seed=seed, **length)
        sampled = answer_scores(sampling, conversations, **options)
        greedy = answer_scores(PolicyAnswers(model, trainer.processing_class, **length), conversations, **options)
    shares = gather_object([(own, sampled, greedy)])  # a list with one share a rank
    # the place of each image's first scores: what fills up a share comes last
    order = np.unique(np.concatenate([share[0] for share in shares]), return_index=True)[1]
    sampled, greedy = (np.concatenate([share[part] for share in shares], axis=1)[:, order] for part in (1, 2))
    scale = {"score_min": args.score_min, "score_max": args.score_max}
    return held_out_metrics(np.asarray(rows["mos"]), sampled=sampled, greedy=greedy[0], **scale)


class _Conversations(Sequence):
    """Dataset rows by number, as conversations whose images are decoded when they are asked for."""

    def __init__(self, rows: Dataset, numbers: list[int], prompt: list[dict] | None):
        self.rows, self.numbers, self.prompt = rows, numbers, prompt
        self.column = "images" if "images" in rows.column_names else "image"

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place) -> Conversation:
        row = self.rows[self.numbers[place]]
        return conversation_of(self.prompt or row["prompt"], row.get(self.column))


def _share(count: int, rank: int, ranks: int) -> list[int]:
    """
    Numbers of a rank's images: every `ranks`-th one, filled up from the front to one length on all ranks.

    Under ZeRO-3 the ranks generate in step, and one with fewer batches would leave the others waiting.
    """
    return [number % count for number in range(rank, ranks * math.ceil(count / ranks), ranks)]
