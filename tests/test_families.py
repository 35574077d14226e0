"""The method over model families: layouts of images differ, from stacked patches to tiles to plain squares."""

import math
from pathlib import Path

import datasets
import pytest
import torch
from datasets import Dataset, Features, List, Value
from PIL import ImageFilter
from transformers import ProcessorMixin
from trl.data_utils import apply_chat_template, prepare_multimodal_messages

from harness import OFF, Run, largest_difference, relative_difference, run
from q_hawkeye_trl.degraded_batch import at_model_size
from tiny_models import FAMILIES, save_policy, tiny_dataset, tiny_image, tiny_policy

FAST = ("qwen2_5_vl", "qwen3_vl", "smolvlm")
families = pytest.mark.parametrize(
    "family", [f if f in FAST else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES]
)
PERCEPTION = {"perception_gamma": 0.01, "entropy_original_coef": 1e-2, "entropy_degraded_coef": 1e-2}
ONLY_DEGRADED_BRANCH = OFF | {"entropy_degraded_coef": 1.0}
SAME_ANSWER = ("<think>blur</think><answer>3.00</answer>",)  # no spread of rewards, so no policy gradient


def train(folder: Path, family: str, **options) -> tuple[Run, list[dict[str, torch.Tensor]]]:
    """Trains a fresh policy; returns the run and the inputs of all its forwards with gradient, in order."""
    model, processor = tiny_policy(family)
    forwards = []

    def keep(module, args, inputs):
        if torch.is_grad_enabled():
            forwards.append({key: value for key, value in inputs.items() if isinstance(value, torch.Tensor)})

    handle = model.register_forward_pre_hook(keep, with_kwargs=True)
    done = run(folder, model=model, processing_class=processor, **{"max_steps": 2, "optim": "sgd"} | options)
    handle.remove()
    return done, forwards


def pixels_of(processor: ProcessorMixin, image) -> torch.Tensor:
    """The processor's pixels of one image in a prompt of its own."""
    prompt = prepare_multimodal_messages([{"role": "user", "content": "Rate."}], images=[image])
    text = apply_chat_template({"prompt": prompt}, processor)["prompt"]
    return processor(images=[[image]], text=[text], return_tensors="pt")["pixel_values"]


@families
def test_twin_column_is_paired_row_by_row(tmp_path, family):
    data, processor = tiny_dataset(4, degraded=True), tiny_policy(family)[1]
    pairs = [(pixels_of(processor, row["image"]), pixels_of(processor, row["degraded_image"])) for row in data]
    # micro-batches smaller than the shuffled generation batch mix rows of both prompts
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    done, forwards = train(tmp_path, family, train_dataset=data, **cut, **PERCEPTION)

    assert len(forwards) == 2 * 2 * 4  # original and twin in 2 steps of 4 micro-batches
    for original, twin in zip(forwards[::2], forwards[1::2], strict=True):
        assert original.keys() == twin.keys()
        for key in original.keys() - {"pixel_values"}:
            assert torch.equal(original[key], twin[key])
        for ours, theirs in zip(original["pixel_values"].chunk(2), twin["pixel_values"].chunk(2), strict=True):
            (row,) = [index for index, (image, _) in enumerate(pairs) if torch.equal(image, ours)]
            assert torch.equal(theirs, pairs[row][1])
            assert not torch.equal(theirs, ours)
    assert all(0 < line["perception/kl"] < math.inf for line in done.logs)


@families
def test_view_on_the_fly_is_a_darker_image_of_the_same_shape(tmp_path, family):
    done, forwards = train(tmp_path, family, degradations=["darken"], **PERCEPTION)
    assert len(forwards) == 4
    for original, twin in zip(forwards[::2], forwards[1::2], strict=True):
        assert original["pixel_values"].shape == twin["pixel_values"].shape
        rows = zip(original["pixel_values"].chunk(8), twin["pixel_values"].chunk(8), strict=True)
        assert all(dark.mean() < bright.mean() - 0.1 for bright, dark in rows)
    assert all(0 < line["perception/kl"] < math.inf for line in done.logs)
    assert all(line["perception/rows_without_view"] == 0 for line in done.logs)


@families
def test_resizing_before_degrading_changes_nothing_else(tmp_path, family):
    built = tiny_policy(family)[1]
    processor = type(built).from_pretrained(save_policy(family, tmp_path))  # its filter comes back as a number
    image = tiny_image((300, 200))
    output = processor.image_processor(images=[image], return_tensors="pt")
    grid = output["image_grid_thw"][0] if "image_grid_thw" in output else None
    sized = pixels_of(processor, at_model_size(image, processor, grid))
    assert sized.shape == pixels_of(processor, image).shape
    assert (sized - pixels_of(processor, image)).abs().mean() < 1e-3  # of pixels with a spread of about 0.5


@families
def test_degraded_branch_trains_the_vision_tower(tmp_path, family):
    done, _ = train(tmp_path, family, max_steps=1, scripted=SAME_ANSWER, **ONLY_DEGRADED_BRANCH)
    assert vision_gradient(done) > 1e-4
    off, _ = train(tmp_path, family, max_steps=1, scripted=SAME_ANSWER, **OFF)
    assert vision_gradient(off) == 0  # so that what came above came through the degraded branch


@families
def test_perception_gradient_original_stops_the_degraded_branch(tmp_path, family):
    options = {"max_steps": 1, "scripted": SAME_ANSWER, **OFF, "perception_gamma": 1.0, "max_grad_norm": 0.0}
    both, _ = train(tmp_path, family, **options)
    original, forwards = train(tmp_path, family, perception_gradient="original", **options)
    assert len(forwards) == 1  # the degraded forward ran without gradient
    assert relative_difference(both.gradients[0], original.gradients[0]) > 0.1
    assert vision_gradient(original) > 0


def vision_gradient(done: Run) -> float:
    """Norm of the first step's gradient on the patch embedding, the first thing that an image meets."""
    (gradient,) = [value for name, value in done.gradients[0].items() if "patch_embed" in name and "weight" in name]
    return gradient.norm().item()


@families
def test_off_equals_stock_bit_for_bit(tmp_path, family):
    options = {"scripted": None, "max_completion_length": 8, "reward_funcs": [length_of_text]}
    stock, _ = train(tmp_path, family, stock=True, **options)
    ours, forwards = train(tmp_path, family, **OFF, **options)
    assert len(forwards) == 2
    assert largest_difference(ours.parameters, stock.parameters) == 0
    assert largest_difference(ours.parameters, dict(tiny_policy(family)[0].named_parameters())) > 0


def length_of_text(completions, **kwargs) -> list[float]:
    """A reward that random completions differ in."""
    return [float(len(completion[0]["content"])) for completion in completions]


@families
def test_several_images_and_missing_twins_do_not_depend_on_the_cut(tmp_path, family):
    data = mixed_dataset()
    whole, forwards = train(
        tmp_path, family, train_dataset=data, max_steps=1, per_device_train_batch_size=16, **PERCEPTION
    )
    assert whole.logs[0]["perception/rows_without_view"] == 4
    original, twin = (forward["pixel_values"] for forward in forwards)
    assert original.shape == twin.shape
    assert not torch.equal(original, twin)

    # one row a micro-batch: no row can see another one's image
    cut = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 16}
    single, forwards = train(tmp_path, family, train_dataset=data, max_steps=1, **cut, **PERCEPTION)
    assert relative_difference(single.gradients[0], whole.gradients[0]) < 1e-5
    without = [
        torch.equal(original["pixel_values"], twin["pixel_values"])
        for original, twin in zip(forwards[::2], forwards[1::2], strict=True)
    ]
    assert sum(without) == 4  # the rollouts of the one row without a twin


def mixed_dataset(images_of_last_row: int = 1) -> Dataset:
    """Four rows: two images, one, one upright without a twin, and as many as asked for; prompts of four lengths."""
    flat = [tiny_image(seed=seed) for seed in range(4)]
    upright = tiny_image((56, 84), seed=4)
    images = [flat[:2], [flat[2]], [upright], [flat[3]] * images_of_last_row]
    twins = [[image.filter(ImageFilter.GaussianBlur(3)) for image in row] for row in images]
    twins[2] = []
    prompts = ["Rate both.", "Rate this picture, please, and take your time.", "How good is it?", "Rate."]
    features = {
        "prompt": [{"role": Value("string"), "content": Value("string")}],
        "images": List(datasets.Image()),
        "degraded_images": List(datasets.Image()),
        "mos": Value("float64"),
        "image_id": Value("string"),
    }
    columns = {
        "prompt": [[{"role": "user", "content": prompt}] for prompt in prompts],
        "images": images,
        "degraded_images": twins,
        "mos": [1.5, 2.5, 3.5, 4.5],
        "image_id": ["a", "b", "c", "d"],
    }
    return Dataset.from_dict(columns, features=Features(features))


def test_none_in_the_degraded_column_counts_as_no_view(tmp_path):
    data = tiny_dataset(2, degraded=True)
    columns = data.to_dict()
    columns["degraded_image"][1] = None
    data = Dataset.from_dict(columns, features=data.features)
    done, forwards = train(tmp_path, "qwen2_5_vl", train_dataset=data, max_steps=1, **PERCEPTION)
    assert done.logs[0]["perception/rows_without_view"] == 4
    same = [torch.equal(a, b) for a, b in zip(*(f["pixel_values"].chunk(8) for f in forwards), strict=True)]
    assert sorted(same) == [False] * 4 + [True] * 4


def test_row_without_image_runs_along_where_rollouts_come_from_outside(tmp_path):
    # TRL itself can neither generate for such a row nor put it in a micro-batch of its own
    data = mixed_dataset(images_of_last_row=0)
    options = {"train_dataset": data, "max_steps": 1, "per_device_train_batch_size": 16}
    done, forwards = train(tmp_path, "qwen2_5_vl", **options, **PERCEPTION)
    assert done.logs[0]["perception/rows_without_view"] == 8
    assert 0 < done.logs[0]["perception/kl"] < math.inf
    original, twin = forwards
    assert original["pixel_values"].shape == twin["pixel_values"].shape


@families
def test_saved_policy_loads_offline_and_is_the_same(tmp_path, family):
    model, processor = tiny_policy(family)
    loaded = type(model).from_pretrained(save_policy(family, tmp_path))
    assert largest_difference(dict(loaded.named_parameters()), dict(model.named_parameters())) == 0
    again = type(processor).from_pretrained(tmp_path)
    assert torch.equal(pixels_of(again, tiny_image()), pixels_of(processor, tiny_image()))
    assert again.tokenizer.get_vocab() == processor.tokenizer.get_vocab()


@families
def test_tiny_policy_is_small_seeded_and_leaves_the_global_random_state(family):
    before = torch.get_rng_state()
    first, again, other = (tiny_policy(family, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert sum(p.numel() for p in first.parameters()) < 500_000
    assert largest_difference(dict(first.named_parameters()), dict(again.named_parameters())) == 0
    assert largest_difference(dict(first.named_parameters()), dict(other.named_parameters())) > 0
