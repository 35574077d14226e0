import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from transformers import AutoModelForImageTextToText, AutoProcessor

from q_hawkeye_trl.demo.policy import demo_policy_path
from q_hawkeye_trl.demo.synthetic import content_seed, draw_sample
from q_hawkeye_trl.evaluation.held_out import answer_scores, conversation_of, evaluate_held_out, held_out_metrics
from q_hawkeye_trl.generation.engine import ImageRefused, PolicyAnswers
from q_hawkeye_trl.text import parse_score, quality_messages

NAN = math.nan
MOS = np.array([1.5, 2.0, 4.0])
QUIET = {"progress": False}
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
    metrics = held_out_metrics(np.array(mos), sampled=np.array(sampled), greedy=np.array(greedy), **WIDE)
    assert metrics == pytest.approx(_reference_metrics(sampled, greedy, mos, 3.0))
    assert metrics.keys() == KEYS


def test_the_mean_of_the_correlations_is_not_the_correlation_of_the_mean():
    rng = np.random.default_rng(0)
    mos = rng.uniform(1, 5, size=200)
    sampled = mos + rng.normal(0, 1.5, size=(4, 200))
    metrics = held_out_metrics(mos, sampled=sampled, greedy=mos, **WIDE)
    assert metrics["srcc_sampled"] < stats.spearmanr(sampled.mean(axis=0), mos).statistic - 0.1
    assert metrics["srcc_greedy"] == pytest.approx(1)


def test_scores_beyond_the_scale_count_as_its_ends():
    sampled, greedy, mos = [[1.2, 9.0, NAN, 4.0], [-3.0, 2.0, 4.5, 4.0]], [0.2, 7.0, 4.0, NAN], [1.0, 2.0, 3.0, 5.0]
    clamped = [[1.2, 5.0, NAN, 4.0], [1.0, 2.0, 4.5, 4.0]], [1.0, 5.0, 4.0, NAN]
    metrics = held_out_metrics(
        np.array(mos), sampled=np.array(sampled), greedy=np.array(greedy), score_min=1, score_max=5
    )
    assert metrics == pytest.approx(_reference_metrics(*clamped, mos, 3.0))


def test_no_answer_at_all():
    metrics = held_out_metrics(np.arange(3.0), sampled=np.full((2, 3), NAN), greedy=np.full(3, NAN), **WIDE)
    assert metrics.pop("parse_rate") == 0
    assert all(math.isnan(value) for value in metrics.values())


def test_missing_scores_count_as_the_middle_of_the_given_scale(policy, images):
    texts = iter([10.0, None, 90.0] * 2)
    figures = evaluate_held_out(
        *policy, images[:3], [1, 2, 3], passes=1, score_min=0, score_max=100, score_fn=lambda _: next(texts), **QUIET
    )
    assert figures["plcc_greedy"] == pytest.approx(stats.pearsonr([10, 50, 90], [1, 2, 3]).statistic)


def test_figures_of_one_kind_of_answers():
    both = held_out_metrics(MOS, sampled=np.array([MOS, MOS]), greedy=MOS, **WIDE)
    assert both.keys() == KEYS
    sampled = held_out_metrics(MOS, sampled=np.array([MOS, MOS]), **WIDE)
    greedy = held_out_metrics(MOS, greedy=MOS, **WIDE)
    assert sampled | greedy == both
    assert not sampled.keys() & greedy.keys()


def test_figures_of_the_bundled_policy(policy, samples, images):
    mos = [sample.quality for sample in samples]
    figures = evaluate_held_out(*policy, images, mos, passes=2, seed=3, batch_size=10, **QUIET)
    rows = [conversation_of(quality_messages(), image) for image in images]
    length = {"max_new_tokens": 24}
    sampled = answer_scores(PolicyAnswers(*policy, rollouts=2, seed=3, **length), rows, batch_size=48, **QUIET)
    greedy = answer_scores(PolicyAnswers(*policy, **length), rows, batch_size=1, **QUIET)
    assert (sampled.shape, greedy.shape) == ((2, 24), (1, 24))
    assert not np.array_equal(sampled[0], sampled[1])
    sampled, greedy = (  # outside of [1, 5] counts as the nearer end
        [[v if math.isnan(v) else min(max(v, 1.0), 5.0) for v in row] for row in part.tolist()]
        for part in (sampled, greedy)
    )
    assert figures == pytest.approx(_reference_metrics(sampled, greedy[0], mos, 3.0))
    assert figures["srcc_greedy"] > 0.6  # far above chance for 24 images
    assert evaluate_held_out(*policy, images, mos, passes=2, seed=3, batch_size=128, **QUIET) == figures
    assert evaluate_held_out(*policy, images, mos, passes=2, seed=4, **QUIET) != figures


def test_greedy_agrees_with_a_loop_over_forward_passes(policy, images):
    model, processor = policy
    expected = []
    rows = [conversation_of(quality_messages(), image) for image in images[:3]]
    answers = PolicyAnswers(*policy, max_new_tokens=24)
    for row in rows:
        inputs = answers._inputs([row])
        ids, length = inputs["input_ids"], inputs["input_ids"].shape[1]
        while ids.shape[1] < length + 24 and ids[0, -1] != processor.tokenizer.eos_token_id:
            types = torch.zeros_like(ids)
            types[:, :length] = inputs["mm_token_type_ids"]
            vision = {key: inputs[key] for key in ("pixel_values", "image_grid_thw")}
            with torch.no_grad():
                logits = model(input_ids=ids, mm_token_type_ids=types, **vision).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        expected.append(parse_score(processor.tokenizer.decode(ids[0, length:], skip_special_tokens=True)))
    np.testing.assert_array_equal(answer_scores(answers, rows, batch_size=3, **QUIET)[0], expected)


def test_an_image_that_the_processor_refuses_is_an_error(policy):
    with pytest.raises(ImageRefused):
        evaluate_held_out(*policy, [Image.new("RGB", (2000, 2))], [1.0], **QUIET)


@pytest.mark.parametrize(
    ("count", "mos", "options"),
    [
        (0, [], {}),
        (2, [1.0], {}),
        (2, [1.0, NAN], {}),
        (1, [1.0], {"passes": 0}),
        (1, [1.0], {"prompts": [quality_messages()] * 2}),
    ],
)
def test_bad_input_is_refused(policy, images, count, mos, options):
    with pytest.raises(ValueError):  # noqa: PT011 - each has its own wording
        evaluate_held_out(*policy, images[:count], mos, **QUIET, **options)


def test_prompts_of_the_rows_are_used(policy, images, monkeypatch):
    seen = []
    monkeypatch.setattr(PolicyAnswers, "__call__", lambda self, rows: seen.extend(rows) or [["1"] for _ in rows])
    own = [[{"role": "user", "content": f"Rate {number}."}] for number in range(2)]
    evaluate_held_out(*policy, [images[0], images[:2]], [1.0, 2.0], prompts=own, passes=1, **QUIET)
    assert [row[0]["content"][-1]["text"] for row in seen] == ["Rate 0.", "Rate 1."] * 2
    assert [len(row[0]["content"]) for row in seen] == [2, 3] * 2
