"""Held-out figures of a trainer: those of `evaluate_held_out`, with every setting passed on, in dataset order."""

import numpy as np
import pytest

from harness import build_trainer
from q_hawkeye_trl.evaluation import held_out, sharded
from q_hawkeye_trl.evaluation.held_out import evaluate_held_out
from q_hawkeye_trl.evaluation.sharded import evaluate_sharded
from q_hawkeye_trl.text import quality_messages
from tiny_models import tiny_dataset

PASSES = 3


def noisy(images, number: int) -> np.ndarray:
    """Scores that follow the images, some of them far out of the range and one missing."""
    levels = np.array([np.asarray(image).mean() for image in images])
    scores = (levels - 100) / 10 + number
    scores[0] = np.nan
    return scores


@pytest.mark.parametrize("seed", [0, 7])
def test_sharded_figures_equal_those_of_one_process(tmp_path, monkeypatch, seed):
    rows = tiny_dataset(7, seed=2)
    prompts = [[*quality_messages()[:-1], {"role": "user", "content": f"Rate picture {i}."}] for i in range(len(rows))]
    rows = rows.remove_columns("prompt").add_column("prompt", prompts)
    trainer = build_trainer(tmp_path, max_completion_length=9, score_min=0.0, score_max=4.0)
    seen = []

    def sampled(model, processor, images, **options):
        seen.append({"kind": "sampled", "count": len(images)} | options)
        return np.stack([noisy(images, number + options["seed"]) for number in range(options["passes"])])

    def greedy(model, processor, images, **options):
        seen.append({"kind": "greedy", "count": len(images)} | options)
        return noisy(images, 0)

    for module in (held_out, sharded):
        monkeypatch.setattr(module, "sampled_scores", sampled)
        monkeypatch.setattr(module, "greedy_scores", greedy)
    asked = {"batch_size": 5, "passes": PASSES, "seed": seed}
    figures = evaluate_sharded(trainer, rows, **asked)
    expected = evaluate_held_out(
        trainer.model, trainer.processing_class, rows["image"], rows["mos"], prompts=rows["prompt"],
        max_new_tokens=9, score_min=0.0, score_max=4.0, progress=False, **asked,
    )  # fmt: skip
    assert figures == expected
    by_kind = [{key: value for key, value in call.items() if key not in ("progress", "score_fn")} for call in seen]
    assert by_kind[:2] == by_kind[2:]  # the same options, prompts among them
    assert by_kind[0]["prompts"] == list(rows["prompt"])
    assert by_kind[0]["max_new_tokens"] == 9


def test_real_answers_give_the_same_figures(tmp_path, monkeypatch):
    rows = tiny_dataset(5, seed=4)
    trainer = build_trainer(tmp_path, max_completion_length=6)
    texts = held_out._answers

    def scored(*args):  # random answers hold no score
        return [f"<answer>{1 + len(text) % 5}</answer>" for text in texts(*args)]

    monkeypatch.setattr(held_out, "_answers", scored)
    asked = {"batch_size": 2, "passes": 2, "seed": 3}
    figures = evaluate_sharded(trainer, rows, **asked)
    expected = evaluate_held_out(
        trainer.model, trainer.processing_class, rows["image"], rows["mos"], prompts=rows["prompt"],
        max_new_tokens=6, progress=False, **asked,
    )  # fmt: skip
    assert figures == pytest.approx(expected, nan_ok=True)
    assert figures["spread"] > 0
