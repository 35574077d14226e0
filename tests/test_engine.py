"""The generation engine: the answers of a row depend on its images, the model and the seed, and on nothing else."""

import copy
import math
import random
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig
from trl.data_utils import prepare_multimodal_messages

from q_hawkeye_trl.data.messages import with_images
from q_hawkeye_trl.demo.policy import demo_policy_path
from q_hawkeye_trl.demo.synthetic import content_seed, draw_sample
from q_hawkeye_trl.generation import engine
from q_hawkeye_trl.generation.engine import (
    BROKEN,
    TOLERANCE,
    ImageRefused,
    PolicyAnswers,
    _Chooser,
    _uniforms,
    end_tokens,
    rollout_seeds,
)
from q_hawkeye_trl.text import parse_score, quality_messages
from tiny_models import FAMILIES, tiny_policy

SIZES = ((112, 84), (84, 112), (112, 56), (56, 56), (84, 84), (300, 200))
LENGTH = 16


def ask(*images: Image.Image) -> list[dict]:
    return with_images({"prompt": quality_messages(), "images": list(images)})


@pytest.fixture(scope="module")
def policy():
    path = demo_policy_path()
    return AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32), AutoProcessor.from_pretrained(path)


@pytest.fixture(scope="module")
def rows() -> list[list[dict]]:
    """Pictures that the bundled policy knows, of several sizes."""
    drawn = [Image.fromarray(draw_sample(content_seed("test", 0, index)).picture) for index in range(24)]
    return [ask(image.resize(SIZES[index % len(SIZES)])) for index, image in enumerate(drawn)]


def noise_rows(count: int, sizes=((56, 56), (84, 56), (56, 112), (84, 84))) -> list[list[dict]]:
    rng = np.random.default_rng(0)
    shapes = [sizes[number % len(sizes)] for number in range(count)]
    return [ask(Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8))) for w, h in shapes]


def answers_of(family: str = "qwen2_5_vl", **options) -> PolicyAnswers:
    return PolicyAnswers(*tiny_policy(family), **{"max_new_tokens": LENGTH} | options)


def in_batches(answers: PolicyAnswers, rows: list, size: int, order: list[int]) -> list:
    results: list = [None] * len(rows)
    for start in range(0, len(order), size):
        part = order[start : start + size]
        for number, result in zip(part, answers([rows[number] for number in part]), strict=True):
            results[number] = result
    return results


@pytest.mark.parametrize("rollouts", [None, 3])
def test_neither_batch_nor_order_matter(policy, rows, rollouts):
    answers = PolicyAnswers(*policy, rollouts=rollouts, max_new_tokens=32)
    order = list(range(len(rows)))
    expected = in_batches(answers, rows, 1, order)
    assert {len(texts) for texts in expected} == {rollouts or 1}
    for size in (3, 24):
        random.Random(size).shuffle(order)
        assert in_batches(answers, rows, size, order) == expected


def test_neither_the_number_of_rollouts_nor_the_limit_matter(policy, rows):
    few = PolicyAnswers(*policy, rollouts=2, max_new_tokens=28)(rows[:12])
    more = PolicyAnswers(*policy, rollouts=5, max_new_tokens=40)(rows[:12])
    assert [texts[:2] for texts in more] == few


def test_log_probabilities_agree_at_other_batch_sizes(policy, rows, monkeypatch):
    """The draws are the same, so that only the last digits of the logits differ."""
    seen: list[torch.Tensor] = []
    plain = _Chooser.__call__

    def observed(self, input_ids, scores):
        seen.append(scores.log_softmax(dim=-1))
        return plain(self, input_ids, scores)

    monkeypatch.setattr(_Chooser, "__call__", observed)
    answers = PolicyAnswers(*policy, rollouts=2, max_new_tokens=24)
    answers.tolerance = 0.0
    some = rows[0:18:6]  # of one size, so that the same step means the same token
    together = answers(some)
    batched = torch.stack(seen)
    for number, row in enumerate(some):
        seen.clear()
        assert answers([row])[0] == together[number]
        alone = torch.stack(seen)
        open_steps = min(len(alone), len(batched)) - 1
        difference = batched[:open_steps, 2 * number : 2 * number + 2] - alone[:open_steps]
        assert difference.abs().max() < 1e-5


def test_seeds_and_rollouts_differ_and_equal_pixels_agree(policy, rows):
    first = PolicyAnswers(*policy, rollouts=8, seed=0, max_new_tokens=32)([rows[0], rows[1], rows[0]])
    second = PolicyAnswers(*policy, rollouts=8, seed=1, max_new_tokens=32)([rows[0]])
    assert first[0] == first[2]
    assert first[0] != second[0]
    assert len(set(first[0])) > 1


def test_seeds_depend_on_seed_pixels_and_rollout():
    images = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in range(40)]
    sets = [[image] for image in images] + [images[:2], images[1::-1], []]
    seeds = [rollout_seeds(seed, shown, 3) for seed in (0, 1) for shown in sets]
    assert len(np.unique(np.concatenate(seeds))) == 2 * 3 * len(sets)
    np.testing.assert_array_equal(rollout_seeds(0, images[:1], 5)[:3], seeds[0])


def test_the_mode_of_a_model_in_training_returns_even_after_an_error():
    rows = noise_rows(2)
    model, processor = tiny_policy()
    expected = PolicyAnswers(model, processor, max_new_tokens=8)(rows)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) or hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.9  # acts in training mode
    assert PolicyAnswers(model, processor, max_new_tokens=8)(rows) == expected
    assert model.training
    assert model.lm_head.training
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(model, "generate", lambda **_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            PolicyAnswers(model, processor)(rows)
    assert model.training


def test_the_number_of_threads_does_not_matter(policy, rows):
    answers = PolicyAnswers(*policy, max_new_tokens=32)
    threads = torch.get_num_threads()
    try:
        texts = []
        for count in (1, 2):
            torch.set_num_threads(count)
            texts.append(answers(rows))
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
def test_rows_that_noise_could_change_are_decoded_alone(policy, rows, rollouts, size):
    answers = PolicyAnswers(*policy, rollouts=rollouts, max_new_tokens=32)
    answers.tolerance = 0.0
    expected = in_batches(answers, rows, 1, list(range(len(rows))))
    noise = Noise(policy[0], size)
    try:
        unguarded = answers(rows)
        answers.tolerance, answers.decoded_again = 1.25 * size, 0
        guarded = answers(rows)
    finally:
        noise.handle.remove()
    assert unguarded != expected  # the noise is enough to change texts
    assert guarded == expected
    assert 0 < answers.decoded_again < len(rows) * (rollouts or 1)


def test_few_rows_are_decoded_again(policy, rows):
    answers = PolicyAnswers(*policy, rollouts=4, max_new_tokens=32)
    answers(rows)
    assert answers.tolerance == TOLERANCE
    assert answers.decoded_again <= 0.05 * 4 * len(rows)


def test_bfloat16_answers_too(rows):
    path = demo_policy_path()
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.bfloat16)
    answers = PolicyAnswers(model, AutoProcessor.from_pretrained(path), max_new_tokens=32)
    assert all(1 <= parse_score(texts[0]) <= 5 for texts in answers(rows[:8]))
    assert answers.decoded_again == 0


def test_a_batch_that_does_not_fit_is_halved(policy, rows, monkeypatch):
    answers = PolicyAnswers(*policy, max_new_tokens=32)
    expected = answers(rows[:9])
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

    def no_memory(*given):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(answers, "_decode", small_memory)
    assert answers(rows[:9]) == expected
    assert max(tried) == 9
    monkeypatch.setattr(answers, "_decode", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        answers(rows[:2])


def test_under_sharded_weights_every_rank_runs_the_same_forwards(policy, rows, monkeypatch):
    """No row is decoded a second time and no batch is halved: the other ranks would wait."""
    monkeypatch.setattr(engine, "_runs_in_step", lambda model: True)
    answers = PolicyAnswers(*policy, rollouts=2, max_new_tokens=24)
    assert answers.tolerance == 0
    answers(rows[:6])
    assert answers.decoded_again == 0
    with pytest.raises(ImageRefused):
        answers([rows[0], ask(Image.new("RGB", (2000, 2)))])


def test_an_image_that_the_processor_refuses_spares_the_others(policy, rows):
    line = ask(Image.new("RGB", (2000, 2)))  # Qwen's processor refuses ratios beyond 200
    answers = PolicyAnswers(*policy, max_new_tokens=32)
    results = answers([rows[0], line, rows[1]])
    assert isinstance(results[1], ImageRefused)
    assert [results[0], results[2]] == answers(rows[:2])


def test_a_processor_without_a_chat_template_is_an_error_before_any_image():
    model, processor = tiny_policy()
    processor = copy.deepcopy(processor)
    processor.chat_template = None
    with pytest.raises(ValueError, match="chat template"):
        PolicyAnswers(model, processor)


@pytest.mark.parametrize("rollouts", [None, 2])
def test_broken_weights_are_an_error_and_no_score(rollouts):
    model, processor = tiny_policy()
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    (result,) = PolicyAnswers(model, processor, rollouts=rollouts, max_new_tokens=4)(noise_rows(1))
    assert isinstance(result, FloatingPointError)


def test_the_global_random_state_is_left_alone(policy, rows):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    PolicyAnswers(*policy, rollouts=2, max_new_tokens=8)(rows[:2])
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.random.get_state()[1].tolist() == numpy_state


# All model families


def generated(answers: PolicyAnswers, row: list[dict]) -> list[int]:
    """What plain `generate` gives for one row, without the end token."""
    inputs = answers._inputs([row])
    config = GenerationConfig(
        max_new_tokens=LENGTH,
        do_sample=False,
        pad_token_id=answers.processor.tokenizer.pad_token_id,
        eos_token_id=answers.ends,
    )
    with torch.no_grad():
        tokens = answers.model.generate(**inputs, generation_config=config)[0, inputs["input_ids"].shape[1] :].tolist()
    ends = [place for place, token in enumerate(tokens) if token in answers.ends]
    return tokens[: ends[0]] if ends else tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_generate(family):
    answers = answers_of(family)
    rows = noise_rows(5)  # of four sizes: padded where the family's prompts differ in length
    decoded = answers._decode(rows, 1, None)
    expected = [generated(answers, row) for row in rows]
    assert decoded.tokens == expected
    assert len({tuple(tokens) for tokens in expected}) > 1  # the images matter
    assert (decoded.margins > 0).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("several", [False, True], ids=["one image", "several images"])
def test_rollouts_share_one_prompt_and_equal_rows_that_ran_alone(family, several):
    answers, rows, rollouts = answers_of(family), noise_rows(3), 4
    if several:
        images = [row[0]["content"][0]["image"] for row in rows]
        rows[0] = ask(images[0], images[2])
    seeds = np.random.default_rng(1).integers(-(2**63), 2**63, len(rows) * rollouts)
    together = answers._decode(rows, rollouts, seeds)
    for row in range(len(seeds)):
        alone = answers._decode([rows[row // rollouts]], 1, seeds[row : row + 1])
        assert alone.tokens[0] == together.tokens[row]
        assert alone.margins[0] == pytest.approx(together.margins[row], abs=1e-4)
    assert len({tuple(tokens) for tokens in together.tokens}) > 3


def test_without_the_hooks_of_generation_prompts_run_once_a_rollout(monkeypatch):
    rows = noise_rows(3)
    expected = answers_of(rollouts=4)(rows)
    monkeypatch.setattr(engine, "HOOKED", ("_gone",))
    assert answers_of(rollouts=4)(rows) == expected


def test_the_vision_tower_runs_once_for_all_rollouts():
    answers = answers_of(max_new_tokens=4)
    answers.ends = [0]
    patches, prompts = [], []
    answers.model.model.visual.register_forward_pre_hook(lambda module, given: patches.append(len(given[0])))
    answers.model.model.language_model.register_forward_hook(
        lambda module, given, output: prompts.append(tuple(output.last_hidden_state.shape[:2]))
    )
    rows = noise_rows(2, sizes=((56, 56),))
    answers._decode(rows, 8, np.arange(16))
    inputs = answers._inputs(rows)
    assert patches == [len(inputs["pixel_values"])]
    assert prompts == [(2, inputs["input_ids"].shape[1]), (16, 1), (16, 1), (16, 1)]


def test_answers_end_at_the_tokens_of_tokenizer_and_generation_config():
    rows = noise_rows(8)
    whole = answers_of()._decode(rows, 1, None).tokens
    answers = answers_of()
    named = sorted({tokens[2 + number % 3] for number, tokens in enumerate(whole[:6])})
    answers.model.generation_config.eos_token_id = named
    answers.ends = end_tokens(answers.model, answers.processor)
    assert answers.ends == sorted({*named, answers.processor.tokenizer.eos_token_id})
    cut = [next((place for place, token in enumerate(tokens) if token in named), LENGTH) for tokens in whole]
    assert answers._decode(rows, 1, None).tokens == [tokens[:place] for tokens, place in zip(whole, cut, strict=True)]
    tokenizer = SimpleNamespace(tokenizer=SimpleNamespace(eos_token_id=None))
    with pytest.raises(ValueError, match="end token"):
        end_tokens(SimpleNamespace(generation_config=None), tokenizer)


@pytest.mark.parametrize("rollouts", [None, 3])
def test_the_models_own_generation_settings_do_not_act(rollouts):
    plain, own = answers_of(rollouts=rollouts), answers_of(rollouts=rollouts)
    settings = own.model.generation_config
    settings.update(repetition_penalty=5.0, top_k=1, top_p=0.01, temperature=0.1, no_repeat_ngram_size=1, num_beams=2)
    assert plain(noise_rows(3)) == own(noise_rows(3))
    assert own.model.generation_config is settings


def test_images_are_where_trl_puts_them_and_padding_is_on_the_left(policy, rows):
    images = [row[0]["content"][0]["image"] for row in rows[:4]]
    expected = policy[1].apply_chat_template(
        [prepare_multimodal_messages(quality_messages(), images=[image]) for image in images],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    )
    inputs = PolicyAnswers(*policy)._inputs(rows[:4])
    assert inputs.keys() == expected.keys()
    for key in expected:
        assert torch.equal(inputs[key], expected[key]), key
    assert not inputs["attention_mask"].all()
    assert inputs["attention_mask"][:, -1].all()


# Random numbers


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
    numbers = _uniforms(torch.arange(200), 3, 500)
    assert 0 < numbers.min() < 1e-4
    assert 1 - 1e-4 < numbers.max() < 1
    shares = torch.histc(numbers, bins=20, min=0, max=1) / numbers.numel()
    assert (shares - 0.05).abs().max() < 0.003  # four standard deviations
    assert torch.equal(_uniforms(torch.arange(17, 18), 3, 500)[0], numbers[17])


def choose(logits: torch.Tensor, seeds: list[int] | None = None, step: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that the chooser takes from the logits of a step, and the margins."""
    prompts = torch.zeros(len(logits), 3, dtype=torch.long)
    chooser = _Chooser(prompts, [-1], None if seeds is None else np.array(seeds))
    scores = chooser(torch.zeros(len(logits), 3 + step, dtype=torch.long), logits)
    return scores.argmax(dim=-1), chooser.margins


def test_draws_have_the_models_distribution():
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(0)) * 2
    chosen, _ = choose(logits.expand(40_000, -1), list(range(40_000)), step=2)
    shares = torch.bincount(chosen, minlength=12) / 40_000
    assert (shares - logits.softmax(-1)[0]).abs().max() < 0.01  # four standard deviations


def test_draws_are_seldom_close():
    # 5,000 tokens of equal probability: a number on the cumulated ones would nearly always be within 1e-4 of an edge
    _, margins = choose(torch.zeros(500, 5_000), list(range(500)))
    assert (margins < 1e-4).sum() <= 2


@pytest.mark.parametrize("seed", range(6))
def test_a_margin_is_a_move_that_changes_nothing(seed):
    generator = torch.Generator().manual_seed(3)
    for _ in range(50):
        logits = torch.randn(1, 9, generator=generator) * 3
        for seeds in (None, [seed]):
            chosen, margins = choose(logits, seeds, step=1)
            signs = torch.randint(0, 2, logits.shape, generator=generator) * 2 - 1
            moved = logits.double() + 0.999 * margins.item() * signs
            assert choose(moved, seeds, step=1)[0].item() == chosen.item()


def test_a_margin_is_no_larger_than_needed():
    logits = torch.tensor([[1.0, 1.5, -2.0]])
    _, margin = choose(logits)
    worst = torch.tensor([[1.0, -1.0, 0.0]]) * (margin.item() * 1.001)
    assert choose(logits + worst)[0].item() == 0


@pytest.mark.parametrize("seeds", [None, [1, 2, 5]])
def test_broken_logits_are_marked_and_suppressed_tokens_are_not(seeds):
    for value in (math.nan, math.inf):
        logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, value, 2.0], [0.0, -math.inf, 2.0]])
        _, margins = choose(logits, seeds)
        assert margins[0] > 0
        assert margins[1] == BROKEN
        assert margins[2] > 0


def test_a_margin_counts_until_the_end_token_only():
    chooser = _Chooser(torch.zeros(2, 3, dtype=torch.long), [7], None)
    chooser(torch.zeros(2, 3, dtype=torch.long), torch.tensor([[0.0, 4.0], [0.0, 4.0]]))
    chooser(torch.tensor([[0, 0, 0, 7], [0, 0, 0, 1]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    assert chooser.margins.tolist() == [2.0, 0.5]
