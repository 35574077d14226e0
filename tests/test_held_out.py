import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl.data_utils import prepare_multimodal_messages

from q_hawkeye_trl.demo.policy import demo_policy_path
from q_hawkeye_trl.demo.synthetic import content_seed, draw_sample
from q_hawkeye_trl.evaluation import held_out
from q_hawkeye_trl.evaluation.held_out import evaluate_held_out, greedy_scores, held_out_metrics, sampled_scores
from q_hawkeye_trl.text import parse_score, quality_messages

NAN = math.nan
KEYS = {"srcc_sampled", "plcc_sampled", "srcc_greedy", "plcc_greedy", "parse_rate", "spread"}


@pytest.fixture(scope="module")
def policy():
    path = demo_policy_path()
    return AutoModelForImageTextToText.from_pretrained(path), AutoProcessor.from_pretrained(path)


@pytest.fixture(scope="module")
def samples():
    return [draw_sample(content_seed("validation", 1, index)) for index in range(24)]


@pytest.fixture(scope="module")
def images(samples):
    return [Image.fromarray(sample.picture) for sample in samples]


def _reference_metrics(sampled, greedy, mos, middle):
    def fill(row):
        return [middle if math.isnan(value) else value for value in row]

    spreads = []
    for column in zip(*sampled, strict=True):
        values = [value for value in column if not math.isnan(value)]
        if len(values) > 1:
            mean = math.fsum(values) / len(values)
            spreads.append(math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values)))
    answers = [value for row in sampled for value in row]
    passes = len(sampled)
    return {
        "srcc_sampled": math.fsum(stats.spearmanr(fill(row), mos).statistic for row in sampled) / passes,
        "plcc_sampled": math.fsum(stats.pearsonr(fill(row), mos).statistic for row in sampled) / passes,
        "srcc_greedy": stats.spearmanr(fill(greedy), mos).statistic,
        "plcc_greedy": stats.pearsonr(fill(greedy), mos).statistic,
        "parse_rate": sum(not math.isnan(value) for value in answers) / len(answers),
        "spread": math.fsum(spreads) / len(spreads),
    }


WIDE = {"score_min": -94.0, "score_max": 100.0}
"""A scale with the middle 3 that clamps nothing."""


def test_metrics_agree_with_loops():
    mos = [1.0, 2.5, 2.5, 4.0, 4.9]
    sampled = [[1.2, 2.0, NAN, 3.0, 7.5], [1.9, 2.0, NAN, 4.0, 4.4], [0.5, NAN, 2.2, NAN, 4.4]]
    greedy = [1.1, NAN, 2.0, 3.5, 3.5]
    metrics = held_out_metrics(np.array(sampled), np.array(greedy), np.array(mos), **WIDE)
    assert metrics == pytest.approx(_reference_metrics(sampled, greedy, mos, 3.0))
    assert metrics.keys() == KEYS


def test_the_mean_of_the_correlations_is_not_the_correlation_of_the_mean():
    rng = np.random.default_rng(0)
    mos = rng.uniform(1, 5, size=200)
    sampled = mos + rng.normal(0, 1.5, size=(4, 200))
    metrics = held_out_metrics(sampled, mos, mos, **WIDE)
    assert metrics["srcc_sampled"] < stats.spearmanr(sampled.mean(axis=0), mos).statistic - 0.1
    assert metrics["srcc_greedy"] == pytest.approx(1)


def test_scores_beyond_the_scale_count_as_its_ends():
    sampled, greedy, mos = [[1.2, 9.0, NAN, 4.0], [-3.0, 2.0, 4.5, 4.0]], [0.2, 7.0, 4.0, NAN], [1.0, 2.0, 3.0, 5.0]
    clamped = [[1.2, 5.0, NAN, 4.0], [1.0, 2.0, 4.5, 4.0]], [1.0, 5.0, 4.0, NAN]
    metrics = held_out_metrics(np.array(sampled), np.array(greedy), np.array(mos), score_min=1, score_max=5)
    assert metrics == pytest.approx(_reference_metrics(*clamped, mos, 3.0))


def test_no_answer_at_all():
    metrics = held_out_metrics(np.full((2, 3), NAN), np.full(3, NAN), np.arange(3.0), **WIDE)
    assert metrics.pop("parse_rate") == 0
    assert all(math.isnan(value) for value in metrics.values())


def test_missing_scores_count_as_the_middle_of_the_given_scale(monkeypatch):
    monkeypatch.setattr(held_out, "sampled_scores", lambda *_, **__: np.array([[10.0, NAN, 90.0]]))
    monkeypatch.setattr(held_out, "greedy_scores", lambda *_, **__: np.array([10.0, NAN, 90.0]))
    model, images = SimpleNamespace(), [None] * 3
    figures = evaluate_held_out(model, None, images, [1, 2, 3], score_min=0, score_max=100)
    assert figures["plcc_greedy"] == pytest.approx(stats.pearsonr([10, 50, 90], [1, 2, 3]).statistic)


def test_prompt_is_what_trl_trains_on(policy, images):
    processor = policy[1]
    messages = [prepare_multimodal_messages(quality_messages(), images=[image]) for image in images[:3]]
    expected = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    inputs = held_out._prompt_inputs(processor, images[:3], [quality_messages()] * 3)
    assert inputs.keys() == expected.keys()
    for key in expected:
        assert torch.equal(torch.as_tensor(inputs[key]), torch.as_tensor(expected[key])), key


def test_shorter_prompts_are_padded_on_the_left(policy):
    inputs = held_out._prompt_inputs(
        policy[1], [Image.new("RGB", size) for size in ((112, 84), (56, 56))], [quality_messages()] * 2
    )
    assert inputs["attention_mask"][0].all()
    assert inputs["attention_mask"][1].tolist() == sorted(inputs["attention_mask"][1].tolist())
    assert not inputs["attention_mask"][1].all()


def test_figures_of_the_bundled_policy(policy, samples, images):
    model, processor = policy
    mos = [sample.quality for sample in samples]
    options = {"batch_size": 10, "progress": False}
    figures = evaluate_held_out(model, processor, images, mos, passes=2, seed=3, **options)
    sampled = sampled_scores(model, processor, images, passes=2, seed=3, **options)
    greedy = greedy_scores(model, processor, images, **options)
    assert sampled.shape == (2, 24)
    assert greedy.shape == (24,)
    # out of [1, 5] counts as the nearer end
    sampled = [
        [value if math.isnan(value) else min(max(value, 1.0), 5.0) for value in row] for row in sampled.tolist()
    ]
    greedy = [value if math.isnan(value) else min(max(value, 1.0), 5.0) for value in greedy.tolist()]
    assert figures == pytest.approx(_reference_metrics(sampled, greedy, mos, 3.0))
    assert figures["srcc_greedy"] > 0.6  # far above chance for 24 images
    assert not np.array_equal(sampled[0], sampled[1])


def test_sampling_is_reproducible_and_a_further_pass_changes_no_earlier_one(policy, images):
    options = {"batch_size": 6, "progress": False}
    two = sampled_scores(*policy, images[:8], passes=2, seed=5, **options)
    three = sampled_scores(*policy, images[:8], passes=3, seed=5, **options)
    other = sampled_scores(*policy, images[:8], passes=2, seed=6, **options)
    np.testing.assert_array_equal(two, three[:2])
    assert not np.array_equal(two, other)


def test_greedy_answers_do_not_depend_on_the_batch(policy, images):
    alone = greedy_scores(*policy, images[:6], batch_size=1, progress=False)
    together = greedy_scores(*policy, images[:6], batch_size=6, progress=False)
    np.testing.assert_array_equal(alone, together)


def test_greedy_agrees_with_a_loop_over_forward_passes(policy, images):
    model, processor = policy
    expected = []
    for image in images[:3]:
        inputs = held_out._prompt_inputs(processor, [image], [quality_messages()])
        ids, length = inputs["input_ids"], inputs["input_ids"].shape[1]
        while ids.shape[1] < length + 24 and ids[0, -1] != processor.tokenizer.eos_token_id:
            types = torch.zeros_like(ids)
            types[:, :length] = inputs["mm_token_type_ids"]
            vision = {key: inputs[key] for key in ("pixel_values", "image_grid_thw")}
            with torch.no_grad():
                logits = model(input_ids=ids, mm_token_type_ids=types, **vision).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        expected.append(parse_score(processor.tokenizer.decode(ids[0, length:], skip_special_tokens=True)))
    np.testing.assert_array_equal(greedy_scores(model, processor, images[:3], progress=False), expected)


@pytest.mark.parametrize("training", [True, False])
def test_leaves_random_state_and_mode_alone(policy, images, training):
    model = policy[0].train(training)
    torch.manual_seed(11)
    before_torch, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    sampled_scores(*policy, images[:2], passes=1, progress=False)
    assert torch.equal(torch.get_rng_state(), before_torch)
    assert np.array_equal(np.random.get_state()[1], before_numpy)
    assert model.training is training
    model.eval()


def test_mode_returns_after_an_error(policy, images):
    def broken(text):
        raise RuntimeError(text)

    model = policy[0].train()
    with pytest.raises(RuntimeError):
        greedy_scores(*policy, images[:1], score_fn=broken, progress=False)
    assert model.training
    model.eval()


def test_score_function_and_unparsed_answers(policy, images):
    seen = []

    def score(text):
        seen.append(text)
        return None if len(seen) % 2 else 2.5

    scores = sampled_scores(*policy, images[:3], passes=2, score_fn=score, progress=False)
    np.testing.assert_array_equal(scores, [[NAN, 2.5, NAN], [2.5, NAN, 2.5]])
    assert all("<answer>" in text and "<|im_end|>" not in text for text in seen)


def test_sampling_ignores_the_models_own_decoding_settings(policy, images):
    model, processor = policy
    free = sampled_scores(model, processor, images[:4], passes=2, progress=False)
    own = model.generation_config.to_dict()
    try:
        model.generation_config.update(top_k=1, top_p=0.01, temperature=0.1, repetition_penalty=3.0)
        np.testing.assert_array_equal(sampled_scores(model, processor, images[:4], passes=2, progress=False), free)
    finally:
        model.generation_config = type(model.generation_config).from_dict(own)


@pytest.mark.parametrize(
    ("count", "mos", "options", "message"),
    [
        (0, [], {}, "no images"),
        (2, [1.0], {}, "one finite MOS"),
        (2, [1.0, NAN], {}, "one finite MOS"),
        (1, [1.0], {"passes": 0}, "at least 1"),
    ],
)
def test_bad_input_is_refused(policy, images, count, mos, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_held_out(*policy, images[:count], mos, progress=False, **options)


def test_prompts_of_the_rows_are_used(policy, images):
    own = [[{"role": "user", "content": "Rate this."}], [{"role": "user", "content": "Rate these."}]]
    inputs = held_out._prompt_inputs(policy[1], [images[0], images[:2]], own)
    texts = policy[1].tokenizer.batch_decode(inputs["input_ids"])
    assert "Rate this." in texts[0]
    assert "Rate these." in texts[1]
    assert len(inputs["image_grid_thw"]) == 3
    with pytest.raises(ValueError, match="one prompt for each of 3 images, got 2"):
        greedy_scores(*policy, images[:3], prompts=own, progress=False)


def test_shares_of_a_set_draw_other_random_numbers(policy, images):
    """The same image in the places of two ranks' first images; one process is as it ever was."""
    twice = [images[0]] * 2
    options = {"passes": 3, "seed": 5, "batch_size": 1, "progress": False}
    first, second = (sampled_scores(*policy, twice[:1], numbers=[number], **options) for number in (0, 1))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(np.hstack([first, second]), sampled_scores(*policy, twice, **options))
