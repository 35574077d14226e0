"""The decoding loop gives what `generate` gives, for every model family, with the prompt run once."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GenerationConfig

from q_hawkeye_trl.scoring.answers import TransformersAnswers
from q_hawkeye_trl.scoring.decoding import BROKEN, _drawn, _likeliest, _uniforms, decode
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
    seeds = np.random.default_rng(1).integers(-(2**63), 2**63, len(images) * rollouts)
    options = {"max_new_tokens": LENGTH, "end_tokens": answers.ends}
    inputs = answers._inputs(images)
    together = decode(answers.model, inputs, rollouts=rollouts, seeds=seeds, **options)
    for row in range(len(seeds)):
        own = answers._inputs([images[row // rollouts]])
        alone = decode(answers.model, own, seeds=seeds[row : row + 1], **options)
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
        seeds=np.arange(16),
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


def splitmix64(seed: int, count: int) -> list[int]:
    """The published generator, in plain integers."""
    values, mask = [], 2**64 - 1
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        value = seed
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
        values.append(value ^ (value >> 31))
    return values


def test_the_random_numbers_are_splitmix64s():
    assert splitmix64(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]  # published
    for seed in (0, 1, -1, 2**63 - 1, -(2**63)):
        for step in (0, 1, 9):
            # its own first output, at the seed's place in the steps, starts the stream of the row and step
            start = splitmix64((seed + (step - 1) * 0x9E3779B97F4A7C15) % 2**64, 1)[0]
            expected = [((value >> 11) + 0.5) / 2**53 for value in splitmix64(start, 5)]
            assert _uniforms(torch.tensor([seed]), step, 5)[0].tolist() == expected


def test_the_random_numbers_are_uniform_and_of_no_batch():
    seeds = torch.arange(200)
    numbers = _uniforms(seeds, 3, 500)
    assert 0 < numbers.min() < 1e-4
    assert 1 - 1e-4 < numbers.max() < 1
    shares = torch.histc(numbers, bins=20, min=0, max=1) / numbers.numel()
    assert (shares - 0.05).abs().max() < 0.003  # four standard deviations
    assert torch.equal(_uniforms(seeds[17:18], 3, 500)[0], numbers[17])
    neighbours = torch.corrcoef(torch.stack([numbers[:-1].flatten(), numbers[1:].flatten()]))[0, 1]
    steps = torch.corrcoef(torch.stack([numbers.flatten(), _uniforms(seeds, 4, 500).flatten()]))[0, 1]
    assert max(abs(neighbours), abs(steps)) < 0.013


def test_draws_have_the_models_distribution():
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(0)) * 2
    chosen, _ = _drawn(logits.expand(40_000, -1), torch.arange(40_000), 2)
    shares = torch.bincount(chosen, minlength=12) / 40_000
    assert (shares - logits.softmax(-1)[0]).abs().max() < 0.01  # four standard deviations


def test_draws_seldom_hang_on_little():
    # 5,000 tokens of like probability: a number on the cumulated ones would be within 1e-4 of an edge nearly always
    logits = torch.zeros(500, 5_000)
    _, margins = _drawn(logits, torch.arange(500), 0)
    assert (margins < 1e-4).sum() <= 2


@pytest.mark.parametrize("seed", range(6))
def test_a_margin_is_a_move_that_changes_nothing(seed):
    generator = torch.Generator().manual_seed(3)
    seeds = torch.tensor([seed])
    for _ in range(50):
        logits = torch.randn(1, 9, generator=generator) * 3
        for choose in (_likeliest, lambda values: _drawn(values, seeds, 1)):
            chosen, margins = choose(logits)
            signs = torch.randint(0, 2, logits.shape, generator=generator) * 2 - 1
            moved = logits.double() + 0.999 * margins.item() * signs
            assert choose(moved)[0].item() == chosen.item()


def test_a_margin_is_no_more_than_needed():
    # the likeliest token changes as soon as the two best move by their margin
    logits = torch.tensor([[1.0, 1.5, -2.0]])
    _, margin = _likeliest(logits)
    worst = torch.tensor([[1.0, -1.0, 0.0]]) * (margin.item() * 1.001)
    assert _likeliest(logits + worst)[0].item() == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rows_with_broken_logits_say_so(value):
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, value, 2.0]])
    for _, margins in (_likeliest(logits), _drawn(logits, torch.tensor([1, 2]), 0)):
        assert margins[0] > 0
        assert margins[1] == BROKEN


def test_suppressed_tokens_are_not_broken():
    logits = torch.tensor([[0.0, -math.inf, 2.0]])
    assert _likeliest(logits)[1].item() == 1.0
    assert _drawn(logits, torch.tensor([5]), 0)[1].item() > 0
