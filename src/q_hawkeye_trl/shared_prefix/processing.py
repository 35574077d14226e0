"""Runs the processor once per prompt, not once per rollout."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin

from ..generation.prefill import replaced
from ..trl_compat import TOKEN_TYPE_KEYS


@contextmanager
def process_once(processor: ProcessorMixin) -> Iterator[None]:
    """
    Inside the block, the processor handles each distinct row (text and images) once and repeats the result.

    Its image processor keeps its outputs for the next call. All outputs are bitwise those of the unchanged processor.
    Images are identified as objects and must not be modified inside the block.
    """
    original = type(processor)
    memo = _ImageMemo(processor.image_processor.preprocess)

    def call(self, images=None, text=None, **kwargs):
        if not _are_rows(images) or not isinstance(text, list) or len(text) != len(images):
            return original.__call__(self, images=images, text=text, **kwargs)
        keys = [(line, *map(id, row)) for line, row in zip(text, images, strict=True)]
        firsts, index = _distinct(keys)
        output = original.__call__(self, images=[images[i] for i in firsts], text=[text[i] for i in firsts], **kwargs)
        # only the image processor knows the tiles per image
        repeated = _repeat(output, memo.layout | dict(output), [len(images[i]) for i in firsts], index)
        return repeated or original.__call__(self, images=images, text=text, **kwargs)

    # Python looks up __call__ on the class, so the processor temporarily gets a subclass of the same name
    processor.__class__ = type(original.__name__, (original,), {"__call__": call})
    try:
        with replaced(processor.image_processor, preprocess=memo):
            yield
    finally:
        processor.__class__ = original


class _ImageMemo:
    """The last outputs of an image processor, by the identity of the images."""

    def __init__(self, preprocess: Callable[..., BatchFeature]):
        self.preprocess = preprocess
        self.layout: dict[str, Any] = {}  # of the last output
        self._kept: dict[Hashable, tuple[Any, BatchFeature]] = {}

    def __call__(self, images, *args, return_tensors=None, **kwargs) -> BatchFeature:
        if not _are_rows(images) or args:
            return self.preprocess(images, *args, return_tensors=return_tensors, **kwargs)
        firsts, index = _distinct([tuple(map(id, row)) for row in images])
        rows = [images[i] for i in firsts]
        output = self._process(rows, return_tensors, kwargs)
        repeated = _repeat(output, dict(output), list(map(len, rows)), index)
        repeated = repeated or self.preprocess(images, return_tensors=return_tensors, **kwargs)
        self.layout = dict(repeated)
        return repeated

    def _process(self, rows: list[list], return_tensors: Any, options: dict[str, Any]) -> BatchFeature:
        key = (tuple(tuple(map(id, row)) for row in rows), repr(sorted(options.items(), key=lambda item: item[0])))
        if key in self._kept:
            _, output = self._kept[key]
            # tensors don't depend on return_tensors
            if all(isinstance(value, torch.Tensor) for value in output.values()):
                return output
        output = self.preprocess(rows, return_tensors=return_tensors, **options)
        self._kept[key] = (rows, output)  # keeps the images: ids are reused after deletion
        return output


def _are_rows(images: Any) -> bool:
    return isinstance(images, list) and bool(images) and all(isinstance(row, list) for row in images)


def _distinct(keys: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """Index of the first row of each distinct key, and for every row the index of its key among these."""
    number: dict[Hashable, int] = {}
    firsts: list[int] = []
    for row, key in enumerate(keys):
        if key not in number:
            number[key] = len(firsts)
            firsts.append(row)
    return firsts, [number[key] for key in keys]


def _repeat(
    output: BatchFeature, layout: dict[str, Any], num_images: list[int], index: list[int]
) -> BatchFeature | None:
    """
    Arrange the output for R distinct rows as `index` says; `None` if the layout of an entry is unknown.

    `layout` has the entries that tell the patches or tiles per image, `num_images` the images of each distinct row.
    """
    rows = len(num_images)
    if len(index) == rows:
        return BatchFeature(dict(output))
    repeated: dict[str, Any] = {}
    for key, value in output.items():
        sizes = _row_sizes(key, value, layout, num_images)
        if sizes is None:
            return None
        if isinstance(value, torch.Tensor):
            parts = value.split(sizes)
            repeated[key] = torch.cat([parts[i] for i in index])
        else:
            ends = [sum(sizes[: i + 1]) for i in range(rows)]
            repeated[key] = [item for i in index for item in value[ends[i] - sizes[i] : ends[i]]]
    return BatchFeature(repeated)


def _row_sizes(key: str, value: Any, layout: dict[str, Any], num_images: list[int]) -> list[int] | None:
    """Entries of a value per row."""
    if key == "pixel_values" and "image_grid_thw" in layout:
        per_image = layout["image_grid_thw"].prod(-1).tolist()
    elif key == "pixel_values" and "num_patches" in layout:
        per_image = [int(count) for count in layout["num_patches"]]
    elif len(value) == len(num_images):
        return [1] * len(num_images)
    else:
        per_image = [1] * sum(num_images)
    if len(value) != sum(per_image) or len(per_image) != sum(num_images):
        return None
    counts = iter(per_image)
    return [sum(next(counts) for _ in range(images)) for images in num_images]


def check_same_prompts(prompts: Sequence[Any], group_size: int) -> None:
    """Raise `ValueError` if the B prompts (conversations with images, or texts) differ inside a group."""
    for row, prompt in enumerate(prompts):
        if prompt != prompts[row - row % group_size]:
            raise ValueError(
                f"Rollout {row % group_size} of group {row // group_size} has another prompt than rollout 0, so the "
                "group can't share one; set shared_prefix to off."
            )


def repeat_fields(fields: dict[str, Any], num_images: list[int], group_size: int) -> dict[str, Any]:
    """
    Repeat the processor's fields of N prompts for their N·G rollouts, except pixels.

    These are lists per token and image grids; `num_images` are the images of each prompt.
    """
    repeated = dict(fields)
    for key in TOKEN_TYPE_KEYS:
        if key in fields:
            repeated[key] = [row for row in fields[key] for _ in range(group_size)]
    if "image_grid_thw" in fields:
        grids = torch.as_tensor(fields["image_grid_thw"]).split(num_images)
        repeated["image_grid_thw"] = torch.cat([grid for grid in grids for _ in range(group_size)])
    return repeated
