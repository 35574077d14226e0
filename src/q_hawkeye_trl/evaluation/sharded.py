"""The held-out figures of a policy in training, with the images shared out over the ranks."""

from typing import Any

import numpy as np
from accelerate.utils import gather_object
from datasets import Dataset
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation

from .held_out import held_out_figures, predict_scores


def evaluate_sharded(trainer: GRPOTrainer, rows: Dataset, *, name: str, **options: Any) -> dict[str, float]:
    """
    Measures the policy of a trainer on held-out images; every rank must call it and gets the same figures. Sampled
    figures depend on the number of ranks, since each draws its own share.

    Args:
        trainer ([`~trl.GRPOTrainer`]):
            Trainer within `train()`, so that the model is wrapped for its backend.
        rows (`Dataset`):
            Rows with `prompt`, `image` or `images`, and `mos`.
        name (`str`):
            Name on the progress bar.
        options:
            Passed on to [`~evaluation.held_out.predict_scores`].

    Returns:
        `dict[str, float]`: As [`~evaluation.held_out.held_out_figures`].
    """
    accelerator, args = trainer.accelerator, trainer.args
    own = list(range(accelerator.process_index, len(rows), accelerator.num_processes))
    with unwrap_model_for_generation(
        trainer.model_wrapped, accelerator, gather_deepspeed3_params=args.ds3_gather_for_generation
    ) as model:
        sampled, greedy = predict_scores(
            model,
            trainer.processing_class,
            rows.select(own),
            max_new_tokens=trainer.max_completion_length,
            progress=f"held out, {name}" if accelerator.is_main_process else None,
            **options,
        )
    columns = gather_object([(row, *sampled[:, i], greedy[i]) for i, row in enumerate(own)])
    table = np.array(sorted(columns))[:, 1:]
    scale = {"score_min": args.score_min, "score_max": args.score_max}
    return held_out_figures(table[:, :-1].T, table[:, -1], rows["mos"], **scale)
