"""The degraded twin of a TRL batch: its `pixel_values`, one entry a row."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import ProcessorMixin
from trl.data_utils import apply_chat_template
from trl.trainer.utils import split_pixel_values_by_grid

from .data.degradations import degraded_views, pixel_hash
from .data.folder import check_pair
from .data.images import to_rgb
from .data.messages import message_images, with_images

_LAYOUT_KEYS = ("image_grid_thw", "pixel_attention_mask", "spatial_shapes", "image_sizes", "image_position_ids")


def given_degraded_images(example: dict[str, Any], originals: Sequence[Image.Image]) -> list[Image.Image] | None:
    """
    Return the degraded images of a dataset row, `None` if it has none.

    Raises `ValueError` unless there is one per original, of the same size.
    """
    degraded = example.get("degraded_images")
    if degraded is None:
        degraded = [example["degraded_image"]] if example.get("degraded_image") is not None else []
    if not degraded:
        return None
    where = f"row with image_id {example['image_id']!r}" if "image_id" in example else "a row without image_id"
    if len(degraded) != len(originals):
        raise ValueError(
            f"{where} has {len(originals)} images and {len(degraded)} degraded ones; give one for each or none."
        )
    for original, twin in zip(originals, degraded, strict=True):
        check_pair(original, twin, where)
    return list(degraded)


def at_model_size(image: Image.Image, processing_class: ProcessorMixin, grid: torch.Tensor | None) -> Image.Image:
    """
    Resize an image to the model's input resolution before it is degraded: resizing afterwards would soften the damage.

    `grid` is the image's patch grid (time, height, width), if the model has one (the Qwen-VL family). Images of tiling
    processors, and of those that only bound one edge, are returned as they are.
    """
    processor = processing_class.image_processor
    if grid is not None:
        size = (int(grid[2]) * processor.patch_size, int(grid[1]) * processor.patch_size)
    elif _is_tiling(processing_class) or not (processor.size and processor.size.get("height")):
        return image
    else:
        size = (processor.size["width"], processor.size["height"])
    image = to_rgb(image)  # Pillow resizes palettes by nearest neighbours
    # the processor's own filter, so that both images are resized alike
    return image if image.size == size else image.resize(size, processor.resample)


def degraded_pixel_values(
    examples: Sequence[dict[str, Any]],
    batch: dict[str, Any],
    processing_class: ProcessorMixin,
    *,
    degradations: Sequence[str] | None,
    degradation_seed: int,
    epoch: int,
    chat_template_kwargs: dict[str, Any] | None = None,
    tools: list | None = None,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """
    Build the degraded twin of a generation batch. Rows that show the same images share one view and one tensor.

    Args:
        examples (`Sequence[dict]`):
            The B dataset rows of the batch, in its order.
        batch (`dict`):
            What TRL made of them: `pixel_values`, `num_images` and the keys that describe the image layout.
        processing_class ([`~transformers.ProcessorMixin`]):
            The model's processor; it is called as TRL calls it for the originals.
        degradations (`Sequence[str]` or `None`):
            Kinds to draw a view from, or `None` if the rows have their own.
        degradation_seed (`int`):
            Seed of the draw.
        epoch (`int`):
            Number of completed epochs; each epoch has another seed.
        chat_template_kwargs (`dict`, *optional*), tools (`list`, *optional*):
            Passed to the chat template.

    Returns:
        `tuple[list[torch.Tensor], torch.Tensor]`: For each of the B rows its slice of `pixel_values`, of the same
        shape as the original's (the original's own if the row has no degraded view), and a `(B,)` bool tensor of the
        rows that have one.

    Raises:
        `ValueError`: A degraded image does not have the layout (size, patch grid, tiles) of its original.
    """
    original_rows = _split_rows(batch, batch["num_images"])
    grids = _rows_of_grids(batch)
    kept: dict[tuple, int] = {}  # content of a row -> index into `views`
    views: list[tuple[int, list[dict], list[Image.Image]]] = []
    pixels: list[int | None] = []
    has_view: list[bool] = []
    hashes: dict[int, str] = {}  # by the image's identity, which the rollouts of a group share
    for row, example in enumerate(examples):
        messages = with_images(example)
        images = message_images(messages)
        if len(images) != batch["num_images"][row]:
            raise ValueError(
                f"The prompt of row {row} has {len(images)} images, but TRL has {batch['num_images'][row]}: images of "
                "tools or rollouts can't be paired; set perception_gamma and entropy_degraded_coef to 0."
            )
        given = given_degraded_images(example, images) if degradations is None else None
        has_view.append(bool(images) and (given is not None or degradations is not None))
        if not images:
            pixels.append(None)
            continue
        shown = [*images, *(given or [])]
        for image in shown:
            if id(image) not in hashes:
                hashes[id(image)] = pixel_hash(image)
        key = (str(_texts_only(messages)), *(hashes[id(image)] for image in shown))
        if key not in kept:
            if degradations is not None:
                sized = [at_model_size(im, processing_class, g) for im, g in zip(images, grids[row], strict=True)]
                given, _ = degraded_views(sized, degradations, degradation_seed=degradation_seed, epoch=epoch)
            kept[key] = len(views)
            # a row without a view is processed with its own images, so that padding over the batch equals TRL's
            views.append((row, messages, given or images))
        pixels.append(kept[key])

    processed = _process_views(views, batch, processing_class, original_rows, chat_template_kwargs or {}, tools)
    rows = [original_rows["pixel_values"][row] if view is None else processed[view] for row, view in enumerate(pixels)]
    return rows, torch.tensor(has_view, device=batch["pixel_values"].device)


def _process_views(views, batch, processing_class, original_rows, chat_template_kwargs, tools) -> list[torch.Tensor]:
    """Run the processor over the distinct views and check that their layout is the originals'."""
    if not views:
        return []
    texts = [
        apply_chat_template({"prompt": messages}, processing_class, tools=tools, **chat_template_kwargs)["prompt"]
        for _, messages, _ in views
    ]
    output = processing_class(images=[v for *_, v in views], text=texts, padding=True, return_tensors="pt")
    sources = [row for row, *_ in views]
    twin = {key: output[key] for key in ("pixel_values", *_LAYOUT_KEYS) if key in output}
    if "num_tiles" in batch:
        twin["num_tiles"] = [batch["num_tiles"][row] for row in sources]
    reference = batch["pixel_values"]
    rows = _split_rows(twin, [batch["num_images"][row] for row in sources])
    for index, row in enumerate(sources):
        for key, values in rows.items():
            ours, theirs = values[index], original_rows[key][row]
            same = ours.shape == theirs.shape and (key == "pixel_values" or torch.equal(ours.to(theirs), theirs))
            if not same:
                raise ValueError(
                    f"The degraded view of row {row} has another {key} than its original, {tuple(ours.shape)} instead "
                    f"of {tuple(theirs.shape)}: both need the same pixel size after the processor."
                )
    return [pixels.to(device=reference.device, dtype=reference.dtype) for pixels in rows["pixel_values"]]


def _split_rows(batch: dict[str, Any], num_images: list[int]) -> dict[str, list[torch.Tensor]]:
    """Split the image tensors of a batch into one slice a row, at TRL's own boundaries."""
    tensors = {key: batch[key] for key in ("pixel_values", "num_tiles", *_LAYOUT_KEYS) if key in batch}
    split = split_pixel_values_by_grid({**tensors, "num_images": num_images})
    rows = {}
    for key in ("pixel_values", *_LAYOUT_KEYS):
        if key in split:
            value = split[key]  # a tensor is padded to one entry a row already
            rows[key] = value if isinstance(value, list) else list(value.split(1))
    return rows


def _rows_of_grids(batch: dict[str, Any]) -> list[Sequence[torch.Tensor | None]]:
    if "image_grid_thw" not in batch:
        return [[None] * count for count in batch["num_images"]]
    return list(batch["image_grid_thw"].split(batch["num_images"]))


def _texts_only(messages: list[dict]) -> list:
    return [[block.get("text", block["type"]) for block in message.get("content") or []] for message in messages]


def _is_tiling(processing_class: ProcessorMixin) -> bool:
    # The processor's defaults override its image processor's: InternVL's turn tiling on.
    defaults = getattr(processing_class, "images_kwargs", {})
    names = ("do_image_splitting", "crop_to_patches")
    return any(defaults.get(name, getattr(processing_class.image_processor, name, False)) for name in names)
