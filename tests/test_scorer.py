"""`HawkeyeScorer` and the metric: order, errors, batches, the reward's and torchmetrics' manner."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from q_hawkeye_trl.demo.policy import demo_policy_path
from q_hawkeye_trl.demo.synthetic import content_seed, draw_sample
from q_hawkeye_trl.scoring import HawkeyeScorer, ImageQuality
from q_hawkeye_trl.scoring import scorer as module
from q_hawkeye_trl.scoring.scorer import _batches
from q_hawkeye_trl.scoring.sources import MemorySource
from tiny_models import tiny_policy

PICTURES = [draw_sample(content_seed("test", 0, index)).picture for index in range(12)]
IMAGES = [Image.fromarray(picture) for picture in PICTURES]


@pytest.fixture(scope="module")
def scorer() -> HawkeyeScorer:
    return HawkeyeScorer(demo_policy_path(), max_new_tokens=32, batch_size=5)


def test_scores_follow_the_quality(scorer):
    qualities = [draw_sample(content_seed("test", 0, index)).quality for index in range(12)]
    assert np.corrcoef(qualities, scorer(IMAGES))[0, 1] > 0.8


def test_order_names_and_errors(scorer, tmp_path):
    IMAGES[0].save(tmp_path / "good.png")
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    wide = IMAGES[1].resize((200, 90))
    scored = scorer.score([tmp_path / "bad.jpg", wide, str(tmp_path / "good.png"), tmp_path / "gone.png", IMAGES[0]])
    assert [each.image for each in scored] == [
        str(tmp_path / "bad.jpg"),
        "image 1",
        str(tmp_path / "good.png"),
        str(tmp_path / "gone.png"),
        "image 4",
    ]
    assert "bad.jpg" in scored[0].error
    assert "gone.png" in scored[3].error
    Image.new("RGB", (2000, 2)).save(tmp_path / "line.png")  # Qwen's processor refuses ratios beyond 200
    refused = scorer.score([tmp_path / "line.png", IMAGES[2].resize((2000, 2))])
    assert refused[0].error.startswith(f"{tmp_path / 'line.png'}: ")
    assert refused[1].error.startswith("image 1: ")
    assert [each.score is None for each in scored] == [True, False, False, True, False]
    assert scored[2].score == scored[4].score
    assert scorer.score([]) == []
    with pytest.raises(ValueError, match="list"):
        scorer.score("a.png")


def test_as_a_reward(scorer, tmp_path):
    values = scorer(IMAGES[:3])
    assert all(type(value) is float and 1 <= value <= 5 for value in values)
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"bad\.jpg"):
        scorer([tmp_path / "bad.jpg"])
    model, processor = tiny_policy()  # says nothing that parses
    assert math.isnan(HawkeyeScorer(model, processor, max_new_tokens=4)(IMAGES[:1])[0])


def test_rollouts_give_a_spread():
    scored = HawkeyeScorer(demo_policy_path(), rollouts=8, max_new_tokens=32).score(IMAGES[:4])
    for each in scored:
        values = [min(max(value, 1), 5) for value in each.rollouts if value is not None]
        assert len(each.rollouts) == 8
        assert each.score == pytest.approx(np.mean(values))
        assert each.spread == pytest.approx(np.std(values))
    assert max(each.spread for each in scored) > 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rollouts": 0}, "rollouts"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"seed": -1}, "seed"),
        ({"score_min": 5.0}, "score_min 5.0"),
        ({"backend": "tgi"}, "tgi"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        HawkeyeScorer(demo_policy_path(), **options)


def test_a_loaded_model_needs_its_processor():
    with pytest.raises(ValueError, match="processor"):
        HawkeyeScorer(tiny_policy()[0])


def test_batches_hold_like_sizes_up_to_a_count_and_a_sum_of_pixels():
    sizes = [(40, 30), (10, 10), (30, 40), (40, 30), (10, 10), (100, 100), (40, 30)]
    sources = [MemorySource([Image.new("1", size)], str(number)) for number, size in enumerate(sizes)]
    assert _batches(sources, list(range(7)), 3) == [[1, 4, 2], [0, 3, 6], [5]]
    assert _batches(sources, [6, 5, 1], 8) == [[1, 6, 5]]


def test_large_images_come_in_smaller_batches(monkeypatch):
    monkeypatch.setattr(module, "_BATCH_PIXELS", 250)
    sources = [MemorySource([Image.new("1", (10, 10))], str(number)) for number in range(5)]
    sources.append(MemorySource([Image.new("1", (100, 10))], "larger than a whole batch may be"))
    assert _batches(sources, list(range(6)), 64) == [[0, 1], [2, 3], [4], [5]]


@pytest.mark.parametrize(("rollouts", "images"), [(None, 6), (1, 6), (2, 3), (4, 1), (9, 1)])
def test_the_batch_size_counts_answers(rollouts, images):
    model, processor = tiny_policy()
    scorer = HawkeyeScorer(model, processor, rollouts=rollouts, batch_size=6, max_new_tokens=2)
    plain, seen = scorer.answer_batch, []
    scorer.answer_batch = lambda batch: seen.append(len(batch)) or plain(batch)
    scorer.score(IMAGES[:6])
    assert seen == [images] * (6 // images)


def test_no_more_than_two_batches_are_in_memory(scorer, tmp_path):
    alive, most = set(), []

    class Source(MemorySource):
        def load(self):
            alive.add(self.name)
            most.append(len(alive))
            return super().load()

    sources = [Source([IMAGES[number % 12]], str(number)) for number in range(40)]
    for number, _ in scorer.score_sources(sources):
        alive.discard(str(number))
    assert len(most) == 40
    assert max(most) <= 2 * 5


def test_shares_of_processes_partition_the_images(scorer):
    sources = [MemorySource([IMAGES[number % 12]], str(number)) for number in range(23)]
    shares = [[number for number, _ in scorer.score_sources(sources, share=(rank, 3))] for rank in range(3)]
    assert sorted(number for share in shares for number in share) == list(range(23))
    assert all(shares)


def test_metric_is_the_mean_over_batches(scorer):
    metric = ImageQuality(scorer)
    assert math.isnan(metric.compute())
    assert math.isnan(metric.coverage)
    metric.update(IMAGES[:3])
    metric.update(IMAGES[3:8])
    scores = scorer(IMAGES[:8])
    assert metric.compute().item() == pytest.approx(sum(scores) / 8)
    assert metric.coverage == 1.0
    assert metric(IMAGES[8:10]).item() == pytest.approx(sum(scorer(IMAGES[8:10])) / 2)  # of this batch
    assert metric.compute().item() == pytest.approx((sum(scores) + sum(scorer(IMAGES[8:10]))) / 10)
    metric.reset()
    assert math.isnan(metric.compute())


def test_metric_leaves_out_images_without_a_score_and_says_so():
    metric = ImageQuality(lambda images: [2.0, math.nan, 4.0])
    metric.update(IMAGES[:3])
    assert metric.compute().item() == 3.0
    assert metric.coverage == pytest.approx(2 / 3)


def test_metric_takes_tensors(scorer):
    metric = ImageQuality(scorer)
    pixels = torch.from_numpy(np.stack(PICTURES[:3])).permute(0, 3, 1, 2)
    expected = sum(scorer(IMAGES[:3])) / 3
    assert metric(pixels).item() == pytest.approx(expected)
    assert metric(pixels.float() / 255).item() == pytest.approx(expected)
    for wrong, message in (
        (pixels[0], r"shape \(B, 3, H, W\), got \(3, 84, 112\)"),
        (pixels.float(), r"floats in \[0, 1\], got"),
        (pixels.float() * torch.nan, r"floats in \[0, 1\]"),
        (pixels.long(), "uint8 or floats, got torch.int64"),
    ):
        with pytest.raises(ValueError, match=message):
            metric.update(wrong)


@pytest.mark.parametrize(
    "idle", [{"dtype": "bfloat16"}, {"device": "cpu"}, {"max_pixels": 9}, {"trust_remote_code": True}]
)
def test_arguments_that_would_do_nothing(idle):
    model, processor = tiny_policy()
    with pytest.raises(ValueError, match=next(iter(idle))):
        HawkeyeScorer(model, processor, **idle)
    with pytest.raises(ValueError, match="processor"):
        HawkeyeScorer(demo_policy_path(), processor)
    with pytest.raises(ValueError, match="device"):
        HawkeyeScorer(demo_policy_path(), backend="vllm", device="cuda:1")
