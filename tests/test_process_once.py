"""Each image once: reading rows of a batch, and what the processor makes of them."""

import copy
import pickle

import numpy as np
import pytest
import torch
from datasets import Dataset, Image
from trl.data_utils import apply_chat_template, prepare_multimodal_messages

from q_hawkeye_trl.data.image_columns import DecodeOnce
from q_hawkeye_trl.generation.prefill import replaced
from q_hawkeye_trl.shared_prefix.processing import check_same_prompts, process_once
from q_hawkeye_trl.text import quality_messages
from tiny_models import FAMILIES, tiny_image, tiny_policy


def as_arrays(output) -> dict:
    return {key: [np.asarray(part) for part in value] for key, value in output.items()}


def assert_same(left, right) -> None:
    left, right = as_arrays(left), as_arrays(right)
    assert left.keys() == right.keys()
    for key in left:
        assert len(left[key]) == len(right[key])
        assert all(a.shape == b.shape and (a == b).all() for a, b in zip(left[key], right[key], strict=True)), key


def calls_of_trl(processor, rows):
    """The two calls that TRL makes of a batch's prompts."""
    prompts = [prepare_multimodal_messages(quality_messages(), images=row) for row in rows]
    tokens = processor.apply_chat_template(
        conversation=prompts, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    texts = [apply_chat_template({"prompt": prompt}, processor)["prompt"] for prompt in prompts]
    return tokens, processor(images=rows, text=texts, padding=True, return_tensors="pt")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", ["one image a prompt", "several images a prompt"])
def test_output_is_the_processors_own_and_no_image_is_processed_twice(family, shape, monkeypatch):
    processor = copy.deepcopy(tiny_policy(family)[1])
    images = [tiny_image(seed=seed) for seed in range(4)] + [tiny_image((112, 56), seed=9)]
    prompts = [[images[0]], [images[4]]] if shape == "one image a prompt" else [images[:2], [images[2], images[4]]]
    rows = [list(row) for row in prompts for _ in range(3)]
    expected = calls_of_trl(processor, rows)
    name, kind = type(processor).__name__, type(processor)

    made = []
    preprocess = processor.image_processor.preprocess
    processor.image_processor.preprocess = lambda given, *a, **k: (
        made.extend(map(len, given)),
        preprocess(given, *a, **k),
    )[1]
    with process_once(processor):
        assert isinstance(processor, kind)
        assert type(processor).__name__ == name
        ours = calls_of_trl(processor, rows)
        once = list(made)
        again = calls_of_trl(processor, rows[::-1])
    for mine, theirs in zip(ours, expected, strict=True):
        assert_same(mine, theirs)
    for mine, theirs in zip(again, calls_of_trl(processor, rows[::-1]), strict=True):
        assert_same(mine, theirs)  # a cached output is not returned for another input
    # at most once for each of the two calls, which want lists and tensors
    assert sum(once) <= 2 * sum(map(len, prompts))
    assert type(processor) is kind


def test_pixels_are_made_once_for_both_calls_where_both_are_given_tensors():
    processor = copy.deepcopy(tiny_policy()[1])
    made = []
    preprocess = processor.image_processor._preprocess

    def counted(images, *args, **kwargs):
        made.append(len(images))
        return preprocess(images, *args, **kwargs)

    processor.image_processor._preprocess = counted
    with process_once(processor):
        calls_of_trl(processor, [row for row in [[tiny_image(seed=0)], [tiny_image(seed=1)]] for _ in range(4)])
    assert made == [2]


def test_processor_is_as_before_after_an_error():
    processor = copy.deepcopy(tiny_policy()[1])
    kind = type(processor)
    with pytest.raises(RuntimeError, match="boom"), process_once(processor):
        raise RuntimeError("boom")
    assert type(processor) is kind
    assert "preprocess" not in vars(processor.image_processor)


def test_a_method_that_the_object_had_of_its_own_comes_back():
    processor = copy.deepcopy(tiny_policy()[1]).image_processor
    own = processor.preprocess = lambda *args, **kwargs: "own"
    with replaced(processor, preprocess=lambda: "other", process=lambda: "new"):
        assert (processor.preprocess(), processor.process()) == ("other", "new")
    assert processor.preprocess is own
    assert "process" not in vars(processor)


def test_one_image_under_two_questions_needs_one_call(monkeypatch):
    processor = copy.deepcopy(tiny_policy("internvl")[1])  # tiles an image are known to the image processor alone
    image, kind = tiny_image((112, 56)), type(processor)
    prompts = [prepare_multimodal_messages(quality_messages(text), images=[image]) for text in ("Good?", "Rate.")]
    texts = [apply_chat_template({"prompt": prompt}, processor)["prompt"] for prompt in prompts for _ in range(2)]
    expected = processor(images=[[image]] * 4, text=texts, padding=True, return_tensors="pt")
    rows, original = [], kind.__call__

    def counted(self, images=None, text=None, **kwargs):
        rows.append(len(text))
        return original(self, images=images, text=text, **kwargs)

    monkeypatch.setattr(kind, "__call__", counted)
    with process_once(processor):
        assert_same(processor(images=[[image]] * 4, text=texts, padding=True, return_tensors="pt"), expected)
    assert rows == [2]


def test_calls_without_images_pass_through():
    processor = copy.deepcopy(tiny_policy()[1])
    expected = processor(text=["good", "bad"], padding=True, return_tensors="pt")
    with process_once(processor):
        assert_same(processor(text=["good", "bad"], padding=True, return_tensors="pt"), expected)


def test_prompts_of_a_group_must_be_one():
    image = tiny_image()
    prompts = [prepare_multimodal_messages(quality_messages(), images=[image]) for _ in range(4)]
    check_same_prompts(prompts, 2)
    prompts[3] = prepare_multimodal_messages(quality_messages("Another?"), images=[image])
    with pytest.raises(ValueError, match=r"Rollout 1 of group 1 .*shared_prefix"):
        check_same_prompts(prompts, 2)


class Counting:
    """Ten rows that count how often each is read."""

    def __init__(self):
        self.reads: list[int] = []

    def __len__(self):
        return 10

    def __getitem__(self, index):
        self.reads.append(index)
        return {"value": [index]}


def test_rows_of_a_batch_are_read_once_and_not_again_for_the_batch_that_repeats_it():
    rows = DecodeOnce(Counting())
    batch = [3, 3, 3, 7, 7, 7]
    for _ in range(4):
        assert [row["value"] for row in rows.__getitems__(batch)] == [[3], [3], [3], [7], [7], [7]]
    assert rows.dataset.reads == [3, 7]
    rows.__getitems__([7, 8])
    rows.__getitems__([3, 7])
    assert rows.dataset.reads == [3, 7, 8, 3]  # 3 was let go with its batch


def test_rows_can_be_written_to_without_a_trace():
    rows = DecodeOnce(Counting())
    first, second = rows.__getitems__([1, 1])
    first["extra"] = 1
    assert "extra" not in second
    assert "extra" not in rows[1]


def test_behaves_as_the_dataset_it_wraps():
    data = Dataset.from_dict({"image": [tiny_image(seed=s) for s in range(3)]}).cast_column("image", Image())
    rows = DecodeOnce(data)
    assert len(rows) == 3
    assert rows.column_names == ["image"]
    assert torch.equal(*(torch.tensor(np.array(x[2]["image"])) for x in (rows, data)))
    assert len(pickle.loads(pickle.dumps(rows))) == 3  # a worker process gets it so
    images = [row["image"] for row in rows.__getitems__([1, 1])]
    assert images[0] is images[1]
