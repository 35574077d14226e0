"""Each prompt of a batch through the processor once, not once a rollout: text, image and pixels."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin

from ..generation.replaced import replaced
from ..trl_compat import TOKEN_TYPE_KEYS


@contextmanager
def process_once(processor: ProcessorMixin) -> Iterator[None]:
    """
    While it lasts, the processor works once on each distinct row (text and images) of a call and repeats the result,
    and its image processor keeps what it made of an image for the next call. The outputs are those of the processor
    as it is, to the bit.

    Args:
        processor ([`~transformers.ProcessorMixin`]):
            The model's processor. Images are told apart as objects, so they must not be changed while it lasts.
    """
    original = type(processor)
    memo = _ImageMemo(processor.image_processor.preprocess)

    def call(self, images=None, text=None, **kwargs):
        if not _are_rows(images) or not isinstance(text, list) or len(text) != len(images):
            return original.__call__(self, images=images, text=text, **kwargs)
        keys = [(line, *map(id, row)) for line, row in zip(text, images, strict=True)]
        firsts, index = _distinct(keys)
        output = original.__call__(self, images=[images[i] for i in firsts], text=[text[i] for i in firsts], **kwargs)
        # tiles an image are known to the image processor alone
        repeated = _repeat(output, memo.layout | dict(output), [len(images[i]) for i in firsts], index)
        return repeated or original.__call__(self, images=images, text=text, **kwargs)

    # calls look at the class, so that for a while the processor is of a class of its own, with the name of the old one
    processor.__class__ = type(original.__name__, (original,), {"__call__": call})
    try:
        with replaced(processor.image_processor, preprocess=memo):
            yield
    finally:
        processor.__class__ = original


class _ImageMemo:
    """What an image processor made of its last rows of images, by the images' identity."""

    def __init__(self, preprocess: Callable[..., BatchFeature]):
        self.preprocess = preprocess
        self.layout: dict[str, Any] = {}  # of what was last returned
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
            # what is a tensor without being asked for is the same when asked for
            if all(isinstance(value, torch.Tensor) for value in output.values()):
                return output
        output = self.preprocess(rows, return_tensors=return_tensors, **options)
        self._kept[key] = (rows, output)  # the images too: an id is taken again after its object
        return output


def _are_rows(images: Any) -> bool:
    return isinstance(images, list) and bool(images) and all(isinstance(row, list) for row in images)


def _distinct(keys: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """Index of the first row of each distinct key, and for every row the number of its key among these."""
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
    Repeats the rows of a processor's output; `None` where an entry's layout is not known.

    Args:
        output (`BatchFeature`):
            Output for R distinct rows.
        layout (`dict`):
            Entries that tell how many patches or tiles an image has.
        num_images (`list[int]`):
            Images of each of them.
        index (`list[int]` of length B):
            The row that stands at each place.

    Returns:
        `BatchFeature` or `None`: The same entries for B rows.
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
    """How many entries of a value belong to each row."""
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
    """
    Checks that the rollouts of each group have one prompt.

    Args:
        prompts (`Sequence`, of length B):
            Conversations whose image blocks carry their image, or texts.
        group_size (`int`):
            Rollouts of a group.

    Raises:
        `ValueError`: They have not.
    """
    for row, prompt in enumerate(prompts):
        if prompt != prompts[row - row % group_size]:
            raise ValueError(
                f"Rollout {row % group_size} of group {row // group_size} has a prompt of its own, so that the group "
                "can't share one; set shared_prefix to off."
            )


def repeat_fields(fields: dict[str, Any], num_images: list[int], group_size: int) -> dict[str, Any]:
    """
    Repeats what the processor made of one prompt a group for each of its rollouts, pixels excepted.

    Args:
        fields (`dict`):
            Multimodal fields of N prompts: lists a token, image grids, pixels.
        num_images (`list[int]` of length N):
            Images of each prompt.
        group_size (`int`):
            Rollouts of a group, G.

    Returns:
        `dict`: Fields a token and grids for N·G rows, all others as they are.
    """
    repeated = dict(fields)
    for key in TOKEN_TYPE_KEYS:
        if key in fields:
            repeated[key] = [row for row in fields[key] for _ in range(group_size)]
    if "image_grid_thw" in fields:
        grids = torch.as_tensor(fields["image_grid_thw"]).split(num_images)
        repeated["image_grid_thw"] = torch.cat([grid for grid in grids for _ in range(group_size)])
    return repeated
