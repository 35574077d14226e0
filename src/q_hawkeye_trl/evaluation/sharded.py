"""The held-out figures of a policy in training, with the images shared out over the ranks."""

import math

import numpy as np
from accelerate.utils import gather_object
from datasets import Dataset
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation

from ..text import parse_score
from .held_out import ScoreFunction, greedy_scores, held_out_metrics, sampled_scores


def evaluate_sharded(
    trainer: GRPOTrainer,
    rows: Dataset,
    *,
    batch_size: int,
    passes: int = 4,
    seed: int = 0,
    score_fn: ScoreFunction = parse_score,
    progress: bool = True,
) -> dict[str, float]:
    """
    Measures the policy of a trainer on held-out images; every rank must call it and gets the same figures. Sampled
    figures depend on the number of ranks, since each draws for its own share; no two ranks draw the same numbers.

    Args:
        trainer ([`~trl.GRPOTrainer`]):
            Trainer within `train()`, so that the model is wrapped for its backend.
        rows (`Dataset`):
            N rows with `prompt`, `image` or `images`, and `mos`.
        batch_size (`int`):
            Images generated for at once.
        passes (`int`, *optional*, defaults to `4`):
            Independent passes with one sample an image.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the samples.
        score_fn (`Callable[[str], float | None]`, *optional*, defaults to [`parse_score`]):
            Reads the score of an answer.
        progress (`bool`, *optional*, defaults to `True`):
            Whether the main process shows a progress bar.

    Returns:
        `dict[str, float]`: As [`~evaluation.held_out.evaluate_held_out`].
    """
    accelerator, args = trainer.accelerator, trainer.args
    own = _share(len(rows), accelerator.process_index, accelerator.num_processes)
    own_rows = rows.select(own)
    images = own_rows["images" if "images" in rows.column_names else "image"]
    options = {
        "prompts": own_rows["prompt"],
        "batch_size": batch_size,
        "max_new_tokens": trainer.max_completion_length,
        "score_fn": score_fn,
        "progress": progress and accelerator.is_main_process,
    }
    with unwrap_model_for_generation(
        trainer.model_wrapped,
        accelerator,
        gather_deepspeed3_params=args.ds3_gather_for_generation,
        gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,  # turned off meanwhile, and on again
    ) as model:
        sampled = sampled_scores(
            model, trainer.processing_class, images, passes=passes, seed=seed, numbers=own, **options
        )
        greedy = greedy_scores(model, trainer.processing_class, images, **options)
    shares = gather_object([(own, sampled, greedy)])  # a list with one share a rank
    # the place of each image's first scores: what fills up a share comes last
    order = np.unique(np.concatenate([share[0] for share in shares]), return_index=True)[1]
    sampled = np.concatenate([share[1] for share in shares], axis=1)[:, order]
    greedy = np.concatenate([share[2] for share in shares])[order]
    mos = np.asarray(rows["mos"])
    return held_out_metrics(sampled, greedy, mos, score_min=args.score_min, score_max=args.score_max)


def _share(count: int, rank: int, ranks: int) -> list[int]:
    """
    Numbers of a rank's images: every `ranks`-th one, filled up from the front to one length on all ranks. Under ZeRO-3
    the ranks generate in step, and one with fewer batches would leave the others waiting for ever.
    """
    return [number % count for number in range(rank, ranks * math.ceil(count / ranks), ranks)]
