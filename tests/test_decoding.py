"""The decoding loop gives what `generate` gives, for every model family, with the prompt run once."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GenerationConfig

from q_hawkeye_trl.scoring.answers import TransformersAnswers
from q_hawkeye_trl.scoring.decoding import BROKEN, _drawn, _likeliest, decode
from q_hawkeye_trl.scoring.policy import end_tokens
from tiny_models import FAMILIES, tiny_policy

LENGTH = 16


def pictures(count: int, sizes=((56, 56), (84, 56), (56, 112), (84, 84))) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    shapes = [sizes[number % len(sizes)] for number in range(count)]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in shapes]


def answers_of(family: str, **options) -> TransformersAnswers:
    model, processor = tiny_policy(family)
    return TransformersAnswers(model, processor, max_new_tokens=LENGTH, **options)


def generated(answers: TransformersAnswers, image: Image.Image) -> list[int]:
    """What transformers' own loop gives for one image, without the end token."""
    inputs = answers._inputs([image])
    config = GenerationConfig(
        max_new_tokens=LENGTH,
        do_sample=False,
        pad_token_id=answers.processor.tokenizer.pad_token_id,
        eos_token_id=sorted(answers.ends),
    )
    with torch.no_grad():
        output = answers.model.generate(**inputs, generation_config=config)[0, inputs["input_ids"].shape[1] :]
    tokens = output.tolist()
    ends = [place for place, token in enumerate(tokens) if token in answers.ends]
    return tokens[: ends[0]] if ends else tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_generate(family):
    answers = answers_of(family)
    images = pictures(5)  # of four sizes: padded where the family's prompts differ in length
    inputs = answers._inputs(images)
    decoded = decode(answers.model, inputs, max_new_tokens=LENGTH, end_tokens=answers.ends)
    expected = [generated(answers, image) for image in images]
    assert decoded.tokens == expected
    assert len({tuple(tokens) for tokens in expected}) > 1  # the images matter
    assert (decoded.margins > 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_rollouts_share_one_prompt_and_equal_rows_that_ran_alone(family):
    answers = answers_of(family)
    images, rollouts = pictures(3), 4
    uniforms = np.random.default_rng(1).random((len(images) * rollouts, LENGTH))
    options = {"max_new_tokens": LENGTH, "end_tokens": answers.ends}
    inputs = answers._inputs(images)
    together = decode(answers.model, inputs, rollouts=rollouts, uniforms=uniforms, **options)
    for row in range(len(uniforms)):
        own = answers._inputs([images[row // rollouts]])
        alone = decode(answers.model, own, uniforms=uniforms[row : row + 1], **options)
        assert alone.tokens[0] == together.tokens[row]
        assert alone.margins[0] == pytest.approx(together.margins[row], abs=1e-4)
    assert len({tuple(tokens) for tokens in together.tokens}) > 3


def test_the_vision_tower_runs_once_for_all_rollouts():
    answers = answers_of("qwen2_5_vl")
    patches = []
    answers.model.model.visual.register_forward_pre_hook(lambda module, given: patches.append(len(given[0])))
    prompts = []
    answers.model.model.language_model.register_forward_hook(
        lambda module, given, output: prompts.append(tuple(output.last_hidden_state.shape[:2]))
    )
    images = pictures(2, sizes=((56, 56),))
    inputs = answers._inputs(images)
    decode(
        answers.model,
        inputs,
        max_new_tokens=4,
        end_tokens={-7},
        rollouts=8,
        uniforms=np.random.default_rng(0).random((16, 4)),
    )
    assert patches == [len(inputs["pixel_values"])]
    assert prompts == [(2, inputs["input_ids"].shape[1]), (16, 1), (16, 1), (16, 1)]


def test_rows_that_ended_leave_the_batch():
    answers = answers_of("qwen2_5_vl")
    widths = []
    answers.model.model.language_model.register_forward_hook(
        lambda module, given, output: widths.append(output.last_hidden_state.shape[0])
    )
    images = pictures(8)
    # end tokens that cut the answers at different places
    first = decode(answers.model, answers._inputs(images), max_new_tokens=LENGTH, end_tokens={-7}).tokens
    ends = {tokens[2 + number % 3] for number, tokens in enumerate(first[:6])}
    widths.clear()
    decoded = decode(answers.model, answers._inputs(images), max_new_tokens=LENGTH, end_tokens=ends)
    cut = [next((place for place, token in enumerate(tokens) if token in ends), LENGTH) for tokens in first]
    assert decoded.tokens == [tokens[:place] for tokens, place in zip(first, cut, strict=True)]
    assert widths[0] == 8
    assert widths[-1] <= 4


def test_the_end_tokens_of_the_generation_config_count():
    model, processor = tiny_policy("qwen2_5_vl")
    model.generation_config.eos_token_id = [7, 9]
    assert end_tokens(model, processor) == {7, 9, processor.tokenizer.eos_token_id}


def test_the_models_own_generation_settings_do_not_act():
    plain, penalized = answers_of("qwen2_5_vl"), answers_of("qwen2_5_vl")
    penalized.model.generation_config.repetition_penalty = 5.0
    penalized.model.generation_config.top_k = 1
    assert plain(pictures(3)) == penalized(pictures(3))


def test_a_draw_is_where_the_cumulated_probability_passes_the_number():
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.5]])
    weights = [math.exp(value) for value in logits[0].tolist()]
    edges = np.cumsum(weights) / sum(weights)
    for number in np.linspace(0, 0.999, 37):
        expected = next(token for token, edge in enumerate(edges) if number < edge)
        chosen, margins = _drawn(logits, torch.tensor([number], dtype=torch.float64))
        assert chosen.item() == expected
        assert margins.item() >= 0


def test_draws_have_the_models_distribution():
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(0)) * 2
    numbers = torch.from_numpy(np.random.default_rng(0).random(40_000))
    chosen, _ = _drawn(logits.expand(len(numbers), -1), numbers)
    shares = torch.bincount(chosen, minlength=12) / len(numbers)
    assert (shares - logits.softmax(-1)[0]).abs().max() < 0.01  # four standard deviations


@pytest.mark.parametrize("number", [0.0, 0.1, 0.5, 0.77, 0.999, 1 - 2**-53])
def test_a_margin_is_a_move_that_changes_nothing(number):
    generator = torch.Generator().manual_seed(3)
    numbers = torch.tensor([number], dtype=torch.float64)
    for _ in range(50):
        logits = torch.randn(1, 9, generator=generator) * 3
        for choose in (_likeliest, lambda values: _drawn(values, numbers)):
            chosen, margins = choose(logits)
            moved = min(margins.item(), 0.05) * 0.98  # the bound of a draw holds to first order
            signs = torch.randint(0, 2, logits.shape, generator=generator) * 2 - 1
            assert choose(logits + moved * signs)[0].item() == chosen.item()


def test_a_margin_is_no_more_than_needed():
    # the likeliest token changes as soon as the two best move by their margin
    logits = torch.tensor([[1.0, 1.5, -2.0]])
    _, margin = _likeliest(logits)
    worst = torch.tensor([[1.0, -1.0, 0.0]]) * (margin.item() * 1.001)
    assert _likeliest(logits + worst)[0].item() == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rows_with_broken_logits_say_so(value):
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, value, 2.0]])
    for _, margins in (_likeliest(logits), _drawn(logits, torch.tensor([0.5, 0.5], dtype=torch.float64))):
        assert margins[0] > 0
        assert margins[1] == BROKEN


def test_suppressed_tokens_are_not_broken():
    logits = torch.tensor([[0.0, -math.inf, 2.0]])
    assert _likeliest(logits)[1].item() == 1.0
    assert _drawn(logits, torch.tensor([0.05], dtype=torch.float64))[1].item() > 0
