"""Conversations with their images in place, and the images of a conversation."""

from collections.abc import Sequence
from typing import Any

from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from trl.data_utils import prepare_multimodal_messages

from .images import load_image


def with_images(row: dict[str, Any]) -> list[dict]:
    """
    Returns the conversation of a dataset row with its images in place, as TRL builds it.

    Args:
        row (`dict`):
            Row with `prompt` and, unless the prompt itself holds the images, `image` or `images`.

    Returns:
        `list[dict]`: Messages whose image blocks carry their image.
    """
    images = row.get("images")
    if images is None:
        images = [row["image"]] if row.get("image") is not None else []
    return prepare_multimodal_messages(row["prompt"], images=images)


def generation_inputs(processor: ProcessorMixin, conversations: Sequence[list[dict]]) -> BatchFeature:
    """
    Turns conversations into what a model answers: the prompt of the next turn, padded on the left.

    Args:
        processor ([`~transformers.ProcessorMixin`]):
            The model's processor.
        conversations (`Sequence[list[dict]]`):
            Messages whose image blocks carry their image.

    Returns:
        `BatchFeature`: Tensors of one row a conversation.
    """
    return processor.apply_chat_template(
        list(conversations),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    )


def message_images(messages: list[dict]) -> list[Image.Image]:
    """
    Collects the images of a conversation in order.

    Args:
        messages (`list[dict]`):
            Messages as [`with_images`] returns them.

    Returns:
        `list[PIL.Image.Image]`
    """
    blocks = (block for message in messages for block in message.get("content") or [] if block["type"] == "image")
    return [image if isinstance(image := block["image"], Image.Image) else load_image(image) for block in blocks]
