"""The texts for an image depend on the image, the model and the seed, and on nothing that happens around it."""

import copy
import random
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from q_hawkeye_trl.demo.policy import demo_policy_path
from q_hawkeye_trl.demo.synthetic import content_seed, draw_sample
from q_hawkeye_trl.scoring.answers import TOLERANCE, ImageRefused, TransformersAnswers
from q_hawkeye_trl.text import parse_score
from tiny_models import tiny_policy

SIZES = ((112, 84), (84, 112), (112, 56), (56, 56), (84, 84), (300, 200))


@pytest.fixture(scope="module")
def policy():
    path = demo_policy_path()
    return AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32), AutoProcessor.from_pretrained(path)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Pictures that the bundled policy knows, of several sizes."""
    drawn = [Image.fromarray(draw_sample(content_seed("test", 0, index)).picture) for index in range(48)]
    return [image.resize(SIZES[index % len(SIZES)]) for index, image in enumerate(drawn)]


def in_batches(answers: TransformersAnswers, images: list, size: int, order: list[int]) -> list:
    results: list = [None] * len(images)
    for start in range(0, len(order), size):
        part = order[start : start + size]
        for number, result in zip(part, answers([images[number] for number in part]), strict=True):
            results[number] = result
    return results


@pytest.mark.parametrize("rollouts", [None, 3])
def test_neither_batch_nor_order_matter(policy, images, rollouts):
    answers = TransformersAnswers(*policy, rollouts=rollouts, max_new_tokens=32)
    order = list(range(len(images)))
    expected = in_batches(answers, images, 1, order)
    assert {len(texts) for texts in expected} == {rollouts or 1}
    for size in (2, 7, 48):
        random.Random(size).shuffle(order)
        assert in_batches(answers, images, size, order) == expected


def test_neither_the_number_of_rollouts_nor_the_limit_matter(policy, images):
    some = images[:12]
    few = TransformersAnswers(*policy, rollouts=2, max_new_tokens=28)(some)
    more = TransformersAnswers(*policy, rollouts=5, max_new_tokens=40)(some)
    assert [texts[:2] for texts in more] == few


def test_seeds_and_rollouts_differ_and_equal_pixels_agree(policy, images):
    first = TransformersAnswers(*policy, rollouts=8, seed=0, max_new_tokens=32)([images[0], images[1], images[0]])
    second = TransformersAnswers(*policy, rollouts=8, seed=1, max_new_tokens=32)([images[0]])
    assert first[0] == first[2]
    assert first[0] != second[0]
    assert len(set(first[0])) > 1


def test_every_image_has_draws_of_its_own(policy, images):
    seeds = [TransformersAnswers(*policy, rollouts=3, seed=seed)._seeds(image) for seed in (0, 1) for image in images]
    assert len(np.unique(np.concatenate(seeds))) == 2 * 3 * len(images)


def test_a_model_in_training_stays_in_training(images):
    model, processor = tiny_policy()
    expected = TransformersAnswers(model, processor, max_new_tokens=8)(images[:2])
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) or hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.9  # acts in training mode
    assert TransformersAnswers(model, processor, max_new_tokens=8)(images[:2]) == expected
    assert model.training
    assert model.lm_head.training


def test_the_number_of_threads_does_not_matter(policy, images):
    answers = TransformersAnswers(*policy, max_new_tokens=32)
    threads = torch.get_num_threads()
    try:
        texts = []
        for count in (1, 2):
            torch.set_num_threads(count)
            texts.append(answers(images))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert texts[0] == texts[1]


class Noise:
    """Adds to each logit what depends on the shape of the batch and the place in it, up to `size` either way."""

    def __init__(self, model, size: float):
        self.size = size
        self.handle = model.lm_head.register_forward_hook(self.add)

    def add(self, module, given, output):
        if output.shape[0] == 1:
            return output
        generator = torch.Generator().manual_seed(sum(output.shape))
        return output + self.size * (2 * torch.rand(output.shape, generator=generator) - 1)


@pytest.mark.parametrize(("rollouts", "size"), [(None, 0.004), (4, 0.04)])
def test_rows_that_noise_could_change_are_decoded_alone(policy, images, rollouts, size):
    answers = TransformersAnswers(*policy, rollouts=rollouts, max_new_tokens=32)
    expected = in_batches(answers, images, 1, list(range(len(images))))
    noise = Noise(policy[0], size)
    try:
        answers.tolerance = 0.0
        unguarded = answers(images)
        answers.tolerance, answers.decoded_again = 1.25 * size, 0
        guarded = answers(images)
    finally:
        noise.handle.remove()
    assert unguarded != expected  # the noise is enough to change texts
    assert guarded == expected
    assert 0 < answers.decoded_again < len(images) * (rollouts or 1)


def test_few_rows_need_it(policy, images):
    answers = TransformersAnswers(*policy, rollouts=4, max_new_tokens=32)
    answers(images)
    assert answers.tolerance == TOLERANCE
    assert answers.decoded_again <= 0.05 * 4 * len(images)


def test_bfloat16_answers_too(images):
    path = demo_policy_path()
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.bfloat16)
    answers = TransformersAnswers(model, AutoProcessor.from_pretrained(path), max_new_tokens=32)
    scores = [parse_score(texts[0]) for texts in answers(images[:8])]
    assert all(1 <= score <= 5 for score in scores)
    assert answers.decoded_again == 0


def test_a_batch_that_does_not_fit_is_cut_in_half(policy, images):
    answers = TransformersAnswers(*policy, max_new_tokens=32)
    expected = answers(images[:9])
    tried, whole = [], answers._decode
    held = weakref.WeakSet()

    def small_memory(batch, *others):
        assert not held  # what the batch before had allocated is free again
        tried.append(len(batch))
        if len(batch) > 2:
            allocated = torch.zeros(1)
            held.add(allocated)
            raise torch.OutOfMemoryError
        return whole(batch, *others)

    answers._decode = small_memory
    assert answers(images[:9]) == expected
    assert max(tried) == 9

    def no_memory(*given):
        raise torch.OutOfMemoryError

    answers._decode = no_memory
    with pytest.raises(torch.OutOfMemoryError):
        answers(images[:2])


def test_an_image_that_the_processor_refuses_spares_the_others(policy, images):
    line = Image.new("RGB", (2000, 2))  # Qwen's processor refuses ratios beyond 200
    answers = TransformersAnswers(*policy, max_new_tokens=32)
    results = answers([images[0], line, images[1]])
    assert isinstance(results[1], ImageRefused)
    assert "aspect ratio" in str(results[1])
    assert [results[0], results[2]] == answers(images[:2])


def test_a_processor_without_a_chat_template_is_an_error_before_any_image():
    model, processor = tiny_policy()
    processor = copy.deepcopy(processor)
    processor.chat_template = None
    with pytest.raises(ValueError, match="has no chat template"):
        TransformersAnswers(model, processor)


def test_broken_weights_are_an_error_and_no_score():
    model, processor = tiny_policy()
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    (result,) = TransformersAnswers(model, processor, max_new_tokens=4)([Image.new("RGB", (56, 56))])
    assert isinstance(result, FloatingPointError)
    assert "not finite" in str(result)


def test_the_global_random_state_is_left_alone(policy, images):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    TransformersAnswers(*policy, rollouts=2, max_new_tokens=8)(images[:2])
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.random.get_state()[1].tolist() == numpy_state
