"""Checks at construction: refuse datasets and TRL features that the method can't work with."""

import math
import numbers
from typing import Any

from .config import HawkeyeGRPOConfig, refuse_reentrant_checkpointing
from .objective.reduction import LOSS_TYPES

_OFF = "set perception_gamma and entropy_degraded_coef to 0 to train without it"


def check_dataset(dataset: Any, args: HawkeyeGRPOConfig) -> None:
    """
    Raise `ValueError` if image columns don't fit together, images are missing though the perception loss needs them,
    or a MOS is not on the scale.

    Datasets without random access are checked by their column names, if known.
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
    """Raise `ValueError`, with the row, for a mean opinion score that is missing, NaN or outside of the scale."""
    for row, value in enumerate(values):
        if (
            not isinstance(value, numbers.Real)
            or not math.isfinite(value)
            or not score_min <= float(value) <= score_max
        ):
            raise ValueError(
                f"mos of row {row} is {value!r}, expected a number in [{score_min}, {score_max}]; set score_min "
                "and score_max to the range of your labels, or rescale the labels (they are never clamped)."
            )


def _check_images(dataset: Any, columns: list[str], args: HawkeyeGRPOConfig) -> None:
    if {"image", "images"} <= set(columns):
        raise ValueError(
            "The dataset has both an image and an images column; keep one (images for several per prompt)."
        )
    if {"degraded_image", "degraded_images"} <= set(columns):
        raise ValueError("The dataset has both a degraded_image and a degraded_images column; keep one.")
    for single, several in (("image", "degraded_images"), ("images", "degraded_image")):
        if {single, several} <= set(columns):
            raise ValueError(
                f"The dataset has the columns {single} and {several}, which don't fit together; rename "
                f"{several} to degraded_{single}."
            )
    if not args.uses_degraded_view or {"image", "images"} & set(columns):
        return
    if hasattr(dataset, "__getitem__") and len(dataset) and prompt_shows_image(dataset[0].get("prompt")):
        return
    raise ValueError(
        f"The perception loss needs images, but the dataset's columns are {', '.join(columns)}; add an image or "
        f"images column, or {_OFF}."
    )


def prompt_shows_image(prompt: Any) -> bool:
    """Tell whether a conversation has an image block."""
    contents = [message.get("content") for message in prompt] if isinstance(prompt, list) else []
    return any(isinstance(c, list) and any(block.get("type") == "image" for block in c) for c in contents)


def check_compatible(trainer: Any) -> None:
    """Raise `ValueError` if a constructed trainer combines the perception terms with unsupported features of TRL."""
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
