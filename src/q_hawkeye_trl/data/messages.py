"""Conversations with their images in place, and the images of a conversation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from .images import load_image

if TYPE_CHECKING:
    from transformers import BatchFeature, ProcessorMixin


def with_images(row: dict[str, Any]) -> list[dict]:
    """
    Return the conversation of a dataset row with its images in place, as TRL's `prepare_multimodal_messages` builds it
    (importing it would load all of TRL).

    Args:
        row (`dict`):
            Row with `prompt` and, unless the prompt itself holds the images, `image` or `images`.

    Returns:
        `list[dict]`: Messages whose image blocks carry their image.

    Raises:
        `ValueError`: The prompt has places for another number of images than the row has.
    """
    images = row.get("images")
    if images is None:
        images = [row["image"]] if row.get("image") is not None else []
    messages = _with_places(row["prompt"], len(images))
    fillable = [message for message in messages if message.get("content") and message["role"] != "tool"]
    places = sum(_is_place(block) for message in fillable for block in message["content"])
    if places != len(images):
        raise ValueError(f"The prompt has places for {places} images and its row has {len(images)}.")
    remaining = iter(images)
    return [
        {**m, "content": [{**b, "image": next(remaining)} if _is_place(b) else b for b in m["content"]]}
        if m.get("content") and m["role"] != "tool"
        else m
        for m in messages
    ]


def generation_inputs(processor: "ProcessorMixin", conversations: Sequence[list[dict]]) -> "BatchFeature":
    """Process conversations for the generation of the next turn: one row each, padded on the left."""
    return processor.apply_chat_template(
        list(conversations),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    )


def message_images(messages: list[dict]) -> list[Image.Image]:
    """Collect the images of a conversation in order."""
    blocks = (block for message in messages for block in message.get("content") or [] if block["type"] == "image")
    return [image if isinstance(image := block["image"], Image.Image) else load_image(image) for block in blocks]


def _with_places(messages: list[dict], images: int) -> list[dict]:
    """Make every content a list of blocks; a first user message of plain text gets the places of the images."""
    structured, are_placed = [], False
    for message in messages:
        if isinstance(message.get("content"), str):
            blocks = [{"type": "text", "text": message["content"]}]
            if message["role"] == "user" and not are_placed:
                blocks = [{"type": "image"} for _ in range(images)] + blocks
                are_placed = True
            message = {**message, "content": blocks}
        structured.append(message)
    return structured


def _is_place(block: dict) -> bool:
    return block["type"] == "image" and "image" not in block
