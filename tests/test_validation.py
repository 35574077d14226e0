"""Validation while training: figures, trackers, best checkpoint, early stopping, and a training left alone."""

import json
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset, IterableDataset
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForImageTextToText, AutoProcessor, EarlyStoppingCallback

from harness import build_trainer, largest_difference, run
from launch import in_processes
from q_hawkeye_trl.demo.policy import demo_policy_path
from q_hawkeye_trl.demo.synthetic import content_seed, draw_sample
from q_hawkeye_trl.evaluation import validation
from q_hawkeye_trl.evaluation.held_out import evaluate_held_out
from q_hawkeye_trl.evaluation.validation import Validation
from q_hawkeye_trl.text import quality_messages
from q_hawkeye_trl.trl_compat import mode

TESTS = Path(__file__).parent
KEYS = {"srcc_sampled", "plcc_sampled", "srcc_greedy", "plcc_greedy", "parse_rate", "spread"}
STEPS = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 3}
BEST = {"load_best_model_at_end": True, "metric_for_best_model": "srcc_sampled", "greater_is_better": True}


def rated_images(use: str, count: int) -> Dataset:
    samples = [draw_sample(content_seed(use, 1, index)) for index in range(count)]
    columns = {
        "prompt": [quality_messages() for _ in samples],
        "image": [Image.fromarray(sample.picture) for sample in samples],
        "mos": [sample.quality for sample in samples],
        "image_id": [f"{use}-{index}" for index in range(count)],
    }
    return Dataset.from_dict(columns)


@pytest.fixture(scope="module")
def images() -> Dataset:
    return rated_images("validation", 10)


def demo_trainer(folder, *, validation=None, **options):
    """Trains the bundled policy, whose scores mean something."""
    path = demo_policy_path()
    options = {"scripted": None, "train_dataset": rated_images("training", 8), "perception_gamma": 0.0} | options
    trainer = build_trainer(
        folder,
        model=AutoModelForImageTextToText.from_pretrained(path),
        processing_class=AutoProcessor.from_pretrained(path),
        **options,
    )
    trainer.validation = validation
    return trainer


def figures(**known) -> dict[str, float]:
    return dict.fromkeys(KEYS, 0.5) | known


def script_figures(monkeypatch, values) -> list:
    """Lets the evaluations report `values` in turn."""
    left = list(values)
    monkeypatch.setattr(
        validation, "evaluate_sharded", lambda *_, **__: figures(srcc_sampled=left.pop(0), plcc_sampled=0.1)
    )
    return left


def evaluations(trainer) -> list[dict]:
    return [line for line in trainer.state.log_history if "eval_srcc_sampled" in line]


def test_figures_are_those_of_the_held_out_evaluation(tmp_path, images):
    trainer = demo_trainer(tmp_path, eval_dataset=images, validation=Validation(batch_size=4, passes=2, seed=5))
    metrics = trainer.evaluate()
    expected = evaluate_held_out(
        trainer.model,
        trainer.processing_class,
        images["image"],
        images["mos"],
        passes=2,
        seed=5,
        batch_size=4,
        progress=False,
    )
    assert {f"eval_{name}" for name in KEYS} <= metrics.keys()
    assert {name: metrics[f"eval_{name}"] for name in KEYS} == pytest.approx(expected)
    assert "eval_loss" not in metrics  # TRL's loop did not run
    assert trainer.validation.seconds > 0


def test_every_tracker_gets_the_figures(tmp_path, images):
    trainer = demo_trainer(
        tmp_path, eval_dataset=images, validation=Validation(passes=2), report_to="tensorboard", **STEPS
    )
    trainer.train()
    logged = evaluations(trainer)
    assert [line["step"] for line in logged] == [1, 2, 3]
    (file,) = tmp_path.rglob("events.out.tfevents*")
    events = EventAccumulator(str(file)).Reload()
    for name in KEYS:
        written = [(event.step, event.value) for event in events.Scalars(f"eval/{name}")]
        assert written == [(line["step"], pytest.approx(line[f"eval_{name}"])) for line in logged]
    assert "train/reward" in events.Tags()["scalars"]
    assert not any(tag.startswith("eval/") and "reward" in tag for tag in events.Tags()["scalars"])


@pytest.mark.parametrize(
    "save", [{"save_strategy": "steps", "save_steps": 1}, {"save_strategy": "best"}], ids=["steps", "best"]
)
def test_the_best_checkpoint_is_kept_and_really_loaded(tmp_path, images, monkeypatch, save):
    script_figures(monkeypatch, [0.7, 0.9, 0.8])
    options = {**STEPS, **BEST, **save, "save_total_limit": 1, "learning_rate": 1e-3}
    trainer = demo_trainer(tmp_path, eval_dataset=images, validation=Validation(), **options)
    trainer.train()
    kept = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert kept == {"checkpoint-2"}
    parameters = {name: p.detach() for name, p in trainer.model.named_parameters()}
    saved = AutoModelForImageTextToText.from_pretrained(tmp_path / "checkpoint-2")
    assert largest_difference(parameters, dict(saved.named_parameters())) == 0
    start = AutoModelForImageTextToText.from_pretrained(demo_policy_path())
    assert largest_difference(parameters, dict(start.named_parameters())) > 1e-4


def test_the_best_adapter_is_loaded(tmp_path, images, monkeypatch):
    script_figures(monkeypatch, [0.9, 0.7, 0.8])
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    options = {**STEPS, **BEST, "save_strategy": "best", "peft_config": adapter}
    trainer = demo_trainer(tmp_path, eval_dataset=images, validation=Validation(), **options)
    trainer.train()
    saved = load_file(tmp_path / "checkpoint-1" / "adapter_model.safetensors")
    loaded = get_peft_model_state_dict(trainer.model)
    assert largest_difference({name: value.cpu() for name, value in loaded.items()}, saved) == 0
    assert trainer.state.global_step == 3


def test_the_loaded_policy_has_the_best_figure_again(tmp_path, images):
    """No scripted figures: a high learning rate spoils the policy, and what is loaded scores as it did at its best."""
    options = {**STEPS, **BEST, "save_strategy": "best", "learning_rate": 3e-3}
    trainer = demo_trainer(tmp_path, eval_dataset=images, validation=Validation(passes=2), **options)
    trainer.train()
    values = [line["eval_srcc_sampled"] for line in evaluations(trainer)]
    assert trainer.state.best_metric == max(values)
    assert min(values) < max(values)
    assert trainer.evaluate()["eval_srcc_sampled"] == max(values)


def test_early_stopping(tmp_path, images, monkeypatch):
    left = script_figures(monkeypatch, [0.9, 0.8, 0.7, 0.95])
    options = {**STEPS, **BEST, "save_strategy": "best", "max_steps": 6}
    trainer = demo_trainer(
        tmp_path, eval_dataset=images, validation=Validation(), callbacks=[EarlyStoppingCallback(2)], **options
    )
    trainer.train()
    assert trainer.state.global_step == 3
    assert left == [0.95]
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")


def test_a_figure_that_is_no_number_is_never_the_best(tmp_path, images, monkeypatch):
    script_figures(monkeypatch, [math.nan, 0.3, math.nan])
    trainer = demo_trainer(
        tmp_path, eval_dataset=images, validation=Validation(), **STEPS, **BEST, save_strategy="best"
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")


def test_each_epoch_and_several_sets(tmp_path, images, monkeypatch):
    script_figures(monkeypatch, [0.1, 0.2, 0.3, 0.4])
    sets = {"seen": images, "unseen": images.select(range(4))}
    options = {"eval_strategy": "epoch", "num_train_epochs": 2, "max_steps": -1}
    trainer = demo_trainer(
        tmp_path,
        eval_dataset=sets,
        validation=Validation(),
        train_dataset=rated_images("training", 2),
        **options,
    )
    trainer.train()
    history = trainer.state.log_history
    for name, expected in (("seen", [(1, 0.1), (2, 0.3)]), ("unseen", [(1, 0.2), (2, 0.4)])):
        key = f"eval_{name}_srcc_sampled"
        assert [(line["epoch"], line[key]) for line in history if key in line] == expected


def test_training_is_the_same_with_and_without(tmp_path, images):
    """Other random numbers or a model left in another mode would show in the weights."""
    plain = demo_trainer(tmp_path / "plain", max_steps=2)
    plain.train()
    watched = demo_trainer(
        tmp_path / "watched", eval_dataset=images, validation=Validation(passes=1), **STEPS | {"max_steps": 2}
    )
    watched.train()
    left, right = ({n: p.detach() for n, p in t.model.named_parameters()} for t in (plain, watched))
    assert largest_difference(left, right) == 0
    rewards = [[line["reward"] for line in t.state.log_history if "loss" in line] for t in (plain, watched)]
    assert rewards[0] == rewards[1]


def test_metrics_of_training_wait_for_their_own_log(tmp_path, images, monkeypatch):
    """An evaluation between two logs neither takes the rewards of the steps before it nor loses them."""
    script_figures(monkeypatch, [0.1, 0.2])
    trainer = demo_trainer(
        tmp_path, eval_dataset=images, validation=Validation(), **STEPS | {"max_steps": 2}, logging_steps=2
    )
    rewards = []
    plain = trainer._add_metrics
    monkeypatch.setattr(
        trainer, "_add_metrics", lambda new: (rewards.append((mode(trainer), new.get("scores/spread"))), plain(new))
    )
    trainer.train()
    for line in evaluations(trainer):
        assert not {"reward", "scores/spread"} & line.keys()
    (line,) = [line for line in trainer.state.log_history if "loss" in line]
    spreads = [value for phase, value in rewards if phase == "train" and value is not None]
    assert len(spreads) == 2
    assert line["scores/spread"] == pytest.approx(sum(spreads) / 2)


def test_gradient_checkpointing_is_on_again_afterwards(tmp_path, images):
    options = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}}
    trainer = demo_trainer(tmp_path, max_steps=1, **options)
    trainer.train()
    layer = next(module for module in trainer.model.modules() if getattr(module, "gradient_checkpointing", False))
    before = layer._gradient_checkpointing_func.keywords
    trainer.eval_dataset, trainer.validation = images, Validation(passes=1)
    trainer.evaluate()
    assert layer.gradient_checkpointing
    assert layer._gradient_checkpointing_func.keywords == before
    assert before["use_reentrant"] is False


def test_without_a_validation_trls_loop_runs(tmp_path):
    from tiny_models import tiny_dataset

    done = run(tmp_path, eval_dataset=tiny_dataset(2, seed=1), per_device_eval_batch_size=8)
    assert {"eval_loss", "eval_reward"} <= done.trainer.evaluate().keys()


@pytest.mark.parametrize("name", ["batch_size", "passes"])
def test_bad_numbers(name):
    with pytest.raises(ValueError, match=name):
        Validation(**{name: 0})


def test_rows_that_cannot_be_measured(images):
    stream = IterableDataset.from_generator(lambda: iter(images))
    for rows in (stream, images.remove_columns("mos")):
        with pytest.raises(ValueError, match="mos"):
            Validation().evaluate(None, rows, "eval")


@pytest.mark.parametrize(("count", "ranks"), [(10, 1), (10, 2), (9, 2), (3, 2), (1, 2), (5, 4), (2, 4), (7, 3)])
def test_the_shares_of_the_ranks_are_put_together(monkeypatch, count, ranks):
    """Each rank generates as often as the others, and each image counts once, in its own place."""
    rows = Dataset.from_dict({"prompt": ["p"] * count, "image": list(range(count)), "mos": list(range(count))})
    calls, gathered, measured = [], [], []

    def scores(answers, conversations, **options):
        numbers = conversations.numbers
        if answers.rollouts is None:
            return np.array([numbers]) * 2.0
        calls.append(numbers)
        # what fills up a share would be seen
        seen = [number if number % ranks == len(gathered) % ranks else 99 for number in numbers]
        return np.array([seen] * answers.rollouts, dtype=float)

    monkeypatch.setattr(
        validation, "PolicyAnswers", lambda *_, rollouts=None, **__: SimpleNamespace(rollouts=rollouts)
    )
    monkeypatch.setattr(validation, "answer_scores", scores)
    monkeypatch.setattr(validation, "unwrap_model_for_generation", lambda *_, **__: nullcontext())
    monkeypatch.setattr(validation, "gather_object", lambda share: gathered.append(share[0]) or list(gathered))
    monkeypatch.setattr(validation, "held_out_metrics", lambda mos, **given: measured.append((mos, given)))
    for rank in range(ranks):
        accelerator = SimpleNamespace(process_index=rank, num_processes=ranks, is_main_process=rank == 0)
        args = SimpleNamespace(
            prompt=None, score_min=1, score_max=5, ds3_gather_for_generation=True, gradient_checkpointing_kwargs=None
        )
        names = ("model_wrapped", "processing_class", "score_fn")
        trainer = SimpleNamespace(accelerator=accelerator, args=args, max_completion_length=8, **dict.fromkeys(names))
        validation.evaluate_sharded(trainer, rows, batch_size=2, passes=2)
    assert {len(own) for own in calls} == {-(-count // ranks)}
    assert set().union(*calls) == set(range(count))
    mos, given = measured[-1]
    assert given["sampled"].tolist() == [list(range(count))] * 2
    assert given["greedy"].tolist() == [2 * number for number in range(count)]
    assert mos.tolist() == list(range(count))


def validate_in_two_processes(folder: Path, *words: object) -> list[dict]:
    in_processes("validation", folder, *words)
    seen = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert [each["world_size"] for each in seen] == [2, 2]
    for name in KEYS:
        assert seen[0][f"eval_{name}"] == seen[1][f"eval_{name}"]
    return seen


@pytest.mark.slow
def test_two_processes_share_the_images(tmp_path, images):
    """Greedy answers don't depend on the share, so their figures are those of one process; each best is one."""
    alone = demo_trainer(tmp_path / "alone", eval_dataset=images, validation=Validation(passes=2))
    expected = alone.evaluate()
    first, _ = validate_in_two_processes(tmp_path, len(images), 64, "plain")
    for name in ("srcc_greedy", "plcc_greedy"):
        assert first[f"eval_{name}"] == pytest.approx(expected[f"eval_{name}"])


@pytest.mark.slow
def test_uneven_shares_under_zero_3_do_not_wait_for_ever(tmp_path):
    """Its ranks generate in step: one with a batch less would leave the other waiting."""
    pytest.importorskip("deepspeed")
    alone = demo_trainer(tmp_path / "alone", eval_dataset=rated_images("validation", 3), validation=Validation())
    expected = alone.evaluate()
    first, _ = validate_in_two_processes(tmp_path, 3, 1, "zero3")
    assert first["kind"] == "DEEPSPEED"
    for name in ("srcc_greedy", "plcc_greedy"):
        assert first[f"eval_{name}"] == pytest.approx(expected[f"eval_{name}"], abs=1e-6)
