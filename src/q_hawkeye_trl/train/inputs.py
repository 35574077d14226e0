"""What a training is given: its images, its rewards, and when it validates."""

from typing import Any

from datasets import Dataset
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..config import HawkeyeGRPOConfig
from ..data.folder import check_rows, load_folder
from ..data.koniq import load_koniq
from ..demo.synthetic import write_synthetic_koniq
from ..evaluation.validation import BEST_METRIC
from ..rewards import get_reward
from ..text import QUALITY_SCALE
from .arguments import ScriptArguments


def load_data(
    script_args: ScriptArguments, training_args: HawkeyeGRPOConfig
) -> tuple[Dataset, Dataset | None, Dataset]:
    """
    Load the training, validation and held-out images, and plan the validation.

    Without `data_dir` and `dataset` the synthetic set is written first, by the main process.

    Args:
        script_args ([`ScriptArguments`]):
            Folders, splits and numbers of images.
        training_args ([`HawkeyeGRPOConfig`]):
            Scale of the scores; its evaluation and checkpoint settings are completed in place, see
            [`plan_validation`].

    Returns:
        `tuple`: Training, validation and held-out images. The second is `None` with `validate=False`, or if a prepared
        folder has no validation split and none is named.

    Raises:
        `ValueError`, `OSError`: A folder, a split, an image or a label can't be read, or is outside the scale.
    """
    with training_args.main_process_first(desc="writing the synthetic set"):
        load = _load_folder if script_args.dataset is not None else _load_koniq
        train, validation, held_out = load(script_args, training_args)
    if validation is not None:
        validation = _first_rows(validation, script_args.validation_images)
        plan_validation(script_args, training_args)
    return train, validation, _first_rows(held_out, script_args.held_out_images)


def _load_folder(script_args: ScriptArguments, args: HawkeyeGRPOConfig) -> tuple[Dataset, Dataset | None, Dataset]:
    assert script_args.dataset is not None
    # a prompt of the config names its own scale
    scale = (args.score_min, args.score_max) if args.prompt is None else QUALITY_SCALE
    train, held_out = (
        load_folder(script_args.dataset, split, scale=scale) for split in ("train", script_args.held_out_split)
    )
    validation = None
    if script_args.validate:
        try:
            validation = load_folder(script_args.dataset, script_args.validation_split or "validation", scale=scale)
        except ValueError as error:
            if script_args.validation_split is not None:
                raise
            if args.process_index == 0:
                print(f"Training without validation: {error}")
    for part in (train, validation, held_out):
        if part is not None:
            check_rows(part, score_min=args.score_min, score_max=args.score_max)
    return train, validation, held_out


def _load_koniq(script_args: ScriptArguments, args: HawkeyeGRPOConfig) -> tuple[Dataset, Dataset | None, Dataset]:
    if (args.score_min, args.score_max) != QUALITY_SCALE:
        raise ValueError(
            f"score_min {args.score_min:g} and score_max {args.score_max:g} are not the scale of KonIQ-10k's MOS and "
            "of the prompt, 1 to 5; leave them out, or give a --dataset with its own prompts."
        )
    if script_args.data_dir is None:
        write_synthetic_koniq(script_args.synthetic_dir)
    data_dir = script_args.data_dir or script_args.synthetic_dir
    options: dict[str, Any] = {"scale": script_args.mos_scale, "allow_missing": script_args.allow_missing}
    train = load_koniq(data_dir, "training", **options)
    validation = None
    if script_args.validate:
        validation = load_koniq(data_dir, script_args.validation_split or "validation", **options)
    return train, validation, load_koniq(data_dir, script_args.held_out_split, **options)


def _first_rows(dataset: Dataset, count: int | None) -> Dataset:
    return dataset if count is None else dataset.select(range(min(count, len(dataset))))


def plan_validation(script_args: ScriptArguments, args: HawkeyeGRPOConfig) -> None:
    """
    Choose, in place, when the validation images are measured and which checkpoint is kept, unless the recipe or the
    command line says so.
    """
    if args.eval_strategy == IntervalStrategy.NO:
        if args.save_strategy in (SaveStrategy.STEPS, SaveStrategy.EPOCH):
            args.eval_strategy, args.eval_steps = IntervalStrategy(args.save_strategy), args.save_steps
        else:
            args.eval_strategy, args.eval_steps = IntervalStrategy.STEPS, 0.25  # of the whole run
        args.do_eval = True
    if not script_args.keep_best or args.load_best_model_at_end:
        return
    if args.save_strategy == SaveStrategy.NO:
        args.save_strategy, args.save_total_limit = SaveStrategy.BEST, args.save_total_limit or 1
    together = args.save_strategy == args.eval_strategy and args.save_steps == args.eval_steps
    if args.save_strategy != SaveStrategy.BEST and not together:
        if args.process_index == 0:
            print("Checkpoints and validations are at different steps: the last model is kept, not the best one.")
        return
    args.load_best_model_at_end = True
    args.metric_for_best_model = args.metric_for_best_model or BEST_METRIC
    args.greater_is_better = True if args.greater_is_better is None else args.greater_is_better


def build_rewards(script_args: ScriptArguments) -> list:
    """Build the rewards by name; the trainer gives them its scale and parser."""
    parameters: Any = script_args.reward_parameters or {}
    return [get_reward(name, **parameters.get(name, {})) for name in script_args.rewards]
