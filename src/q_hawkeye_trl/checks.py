"""Checks at construction: data and TRL features with which the method could not work, refused by name."""

import math
import numbers
from typing import Any

from .config import HawkeyeGRPOConfig, refuse_reentrant_checkpointing
from .objective.reduction import LOSS_TYPES

_OFF = "set perception_gamma and entropy_degraded_coef to 0 to train without it"


def check_dataset(dataset: Any, args: HawkeyeGRPOConfig) -> None:
    """
    Checks the columns that the method reads. Datasets without random access are checked as far as their columns are
    known.

    Args:
        dataset (`Dataset`, `IterableDataset`, a dict of such, or `None`):
            Training or evaluation data.
        args ([`HawkeyeGRPOConfig`]):
            Configuration.

    Raises:
        `ValueError`: Images are missing although the perception loss is on, an image column and its degraded twin do
        not belong together, or a MOS is missing or outside of the scale.
    """
    if isinstance(dataset, dict):
        for part in dataset.values():
            check_dataset(part, args)
        return
    columns = getattr(dataset, "column_names", None)
    if not columns:
        return
    _check_images(dataset, columns, args)
    if "mos" in columns and hasattr(dataset, "__getitem__"):
        check_mos(dataset["mos"], args.score_min, args.score_max)


def check_mos(values: Any, score_min: float, score_max: float) -> None:
    """
    Checks that every mean opinion score lies on the scale.

    Args:
        values (iterable of `float` or `None`):
            Scores in the order of the rows.
        score_min (`float`):
            Lower end of the scale.
        score_max (`float`):
            Upper end of the scale.

    Raises:
        `ValueError`: A score is missing, NaN or outside of the scale; the message names the row.
    """
    for row, value in enumerate(values):
        if (
            not isinstance(value, numbers.Real)
            or not math.isfinite(value)
            or not score_min <= float(value) <= score_max
        ):
            raise ValueError(
                f"mos of row {row} is {value!r}, expected a number in [{score_min}, {score_max}]; bring it to that "
                "scale (it is never clamped), or set score_min and score_max to the scale of the data."
            )


def _check_images(dataset: Any, columns: list[str], args: HawkeyeGRPOConfig) -> None:
    if {"image", "images"} <= set(columns):
        raise ValueError("The dataset has both an image and an images column; keep one (images for several a prompt).")
    if {"degraded_image", "degraded_images"} <= set(columns):
        raise ValueError("The dataset has both a degraded_image and a degraded_images column; keep one.")
    for single, several in (("image", "degraded_images"), ("images", "degraded_image")):
        if {single, several} <= set(columns):
            raise ValueError(
                f"The dataset has the columns {single} and {several}, which don't belong together; name the second "
                f"degraded_{single}."
            )
    if not args.uses_degraded_view or {"image", "images"} & set(columns):
        return
    if hasattr(dataset, "__getitem__") and len(dataset) and _holds_image(dataset[0].get("prompt")):
        return
    raise ValueError(
        f"The perception loss needs images, but the dataset's columns are {', '.join(columns)}; add an image or "
        f"images column, or {_OFF}."
    )


def _holds_image(prompt: Any) -> bool:
    if not isinstance(prompt, list):
        return False
    contents = (message.get("content") for message in prompt)
    return any(isinstance(c, list) and any(block.get("type") == "image" for block in c) for c in contents)


def check_compatible(trainer: Any) -> None:
    """
    Checks a constructed trainer for TRL features that can't be combined with the perception terms.

    Args:
        trainer ([`HawkeyeGRPOTrainer`]):
            Trainer, after TRL has set it up.

    Raises:
        `ValueError`: The combination is not supported; the message names both sides.
    """
    args = trainer.args
    if args.uses_perception_terms and trainer.loss_type not in LOSS_TYPES:
        raise ValueError(
            f"loss_type {trainer.loss_type!r} is unknown to the perception terms, which average as the policy loss "
            f"does; use one of {', '.join(LOSS_TYPES)}."
        )
    if not args.uses_degraded_view:
        return
    if not trainer._is_vlm:
        raise ValueError(
            "The perception loss needs a vision-language model with a processor, got "
            f"{type(trainer.processing_class).__name__}; {_OFF}."
        )
    refuse_reentrant_checkpointing(args)  # again: TRL turns it on for PEFT with ZeRO-3
    if trainer.environment_factories is not None:
        raise ValueError(
            f"environment_factory can change prompts and images, which the perception loss can't pair; {_OFF}."
        )
