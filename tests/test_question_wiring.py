"""The question travels from the config to rewards, weights and validation, and with the model to its evaluation."""

import json
import math
import subprocess
import sys

import pytest
from datasets import Dataset, DatasetDict
from datasets import Image as ImageFeature
from PIL import Image
from transformers import AutoProcessor
from typer.testing import CliRunner

from harness import build_trainer
from q_hawkeye_trl import HawkeyeGRPOConfig, HawkeyeGRPOTrainer
from q_hawkeye_trl.cli import app
from q_hawkeye_trl.demo.policy import demo_policy_path
from q_hawkeye_trl.demo.synthetic import content_seed, draw_sample
from q_hawkeye_trl.evaluation.validation import Validation
from q_hawkeye_trl.question import Question, load_question, save_questions
from q_hawkeye_trl.rewards import accuracy_reward, configure_reward, format_reward
from q_hawkeye_trl.scoring import HawkeyeScorer
from q_hawkeye_trl.scoring.policy import find_question
from q_hawkeye_trl.text import QUALITY_PROMPT, quality_messages

PROMPT = "Rate the quality of this picture from 0 to 100, as \\boxed{number}."
HUNDRED = Question(PROMPT, 0.0, 100.0, "boxed", 9408)
FIELDS = {"prompt": PROMPT, "score_min": 0.0, "score_max": 100.0, "score_parser": "boxed", "max_pixels": 9408}


def percent(text: str) -> float | None:
    """A parser that can be imported: the answer of the bundled policy, on another scale."""
    from q_hawkeye_trl.text import parse_score

    score = parse_score(text)
    return None if score is None else 25 * (score - 1)


def rated(use: str, count: int, *, points=lambda quality: 25 * (quality - 1), several: bool = False) -> Dataset:
    samples = [draw_sample(content_seed(use, 1, index)) for index in range(count)]
    images = [Image.fromarray(sample.picture) for sample in samples]
    shown = {"images": [[image, images[0]] for image in images]} if several else {"image": images}
    columns = {"mos": [points(sample.quality) for sample in samples], "image_id": [f"{use}-{n}" for n in range(count)]}
    return Dataset.from_dict({"prompt": [quality_messages()] * count, **shown, **columns})


def demo_trainer(folder, **options):
    path = demo_policy_path()
    processor = AutoProcessor.from_pretrained(path, max_pixels=9408)
    options = {"scripted": None, "train_dataset": rated("training", 8), "perception_gamma": 0.0} | options
    return build_trainer(folder, model=str(path), processing_class=processor, max_completion_length=24, **options)


def q_hawkeye(*arguments, status: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result.output


def test_a_0_to_100_question_runs_through_train_score_and_evaluate(tmp_path):
    """Two steps on the bundled policy, whose answers in boxes are scripted in the format, then no repeated flag."""
    boxed = [f"so: \\boxed{{{value}}}" for value in (10, 30, 50, 70, 90, 20, 40, 60)]
    trainer = demo_trainer(tmp_path / "run", scripted=boxed, reward_funcs=[accuracy_reward], max_steps=2, **FIELDS)
    trainer.train()
    trainer.save_model()
    assert trainer.question == HUNDRED
    for folder in (tmp_path / "run", *(tmp_path / "run").glob("checkpoint-*")):
        assert load_question(folder) == HUNDRED
    line = next(line for line in trainer.state.log_history if "reward" in line)
    assert line["scores/parse_rate"] == 1.0
    assert line["rewards/out_of_range_share"] == 0.0

    assert HawkeyeScorer(tmp_path / "run").question == HUNDRED
    data, out = tmp_path / "data", tmp_path / "scores.jsonl"
    rated("test", 6).remove_columns("prompt").save_to_disk(data)
    options = ("--model", tmp_path / "run", "--max-new-tokens", 24)
    q_hawkeye("score", data, "--out", out, *options)
    assert len(out.read_text().splitlines()) == 6
    q_hawkeye("evaluate", "--data", data, "--json", tmp_path / "figures.json", "--draws", 5, *options)
    figures = json.loads((tmp_path / "figures.json").read_text())["data"]
    assert figures["images"] == 6
    assert figures["held_out"].keys() == {"srcc_greedy", "plcc_greedy"}


def test_figures_on_another_scale_are_those_of_1_to_5(tmp_path):
    """One policy with labels and a parser on 1 to 5, and on 0 to 100: errors are in points of 1 to 5."""
    figures = []
    for name, question, points in (
        ("five", Question(), lambda quality: quality),
        ("hundred", Question(QUALITY_PROMPT, 0, 100, "test_question_wiring:percent"), lambda q: 25 * (q - 1)),
    ):
        model, data, out = tmp_path / name / "model", tmp_path / name / "data", tmp_path / name / "out.json"
        for file in demo_policy_path().iterdir():
            model.mkdir(parents=True, exist_ok=True)
            (model / file.name).symlink_to(file)
        save_questions(model, {"quality": question})
        rated("test", 12, points=points).save_to_disk(data)
        options = ("--model", model, "--max-new-tokens", 24, "--rollouts", 2, "--draws", 5, "--trust-remote-code")
        q_hawkeye("evaluate", "--data", data, "--json", out, *options)
        figures.append(json.loads(out.read_text())["data"])
    five, hundred = figures
    for key in ("srcc", "rmse", "mae"):
        assert hundred[key] == pytest.approx(five[key], abs=1e-6)
    assert hundred["held_out"].pop("spread") == pytest.approx(25 * five["held_out"].pop("spread"))
    assert hundred["held_out"] == pytest.approx(five["held_out"])


@pytest.mark.parametrize("several", [False, True], ids=["one image", "several images"])
def test_validation_and_evaluate_give_the_same_figures(tmp_path, several):
    rows = rated("validation", 6, points=lambda quality: quality, several=several)
    trainer = demo_trainer(
        tmp_path / "run",
        train_dataset=rated("training", 8, points=lambda quality: quality, several=several),
        eval_dataset=rows,
    )
    trainer.validation = Validation(passes=3, seed=7, batch_size=12)
    metrics = trainer.evaluate()
    trainer.save_model()
    assert trainer.question == Question()
    DatasetDict({"test": rows}).save_to_disk(tmp_path / "data")
    options = ["evaluate", "--model", tmp_path / "run", "--data", tmp_path / "data", "--max-new-tokens", 24]
    options += ["--draws", 5, "--seed", 7]
    measured = {}
    for number, (further, batch) in enumerate([(["--rollouts", 3], 12), (["--rollouts", 3], 5), ([], 12), ([], 4)]):
        out = tmp_path / f"{number}.json"
        q_hawkeye(*options, *further, "--batch-size", batch, "--json", out)
        figures = json.loads(out.read_text())["data"]["held_out"]
        assert figures.items() <= {name.removeprefix("eval_"): value for name, value in metrics.items()}.items()
        measured |= figures
    assert len(measured) == 6


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, Question()),
        ({"score_fn": percent}, Question(parser="test_question_wiring:percent")),
        ({"score_fn": lambda text: 3.0}, Question(parser=None)),
        ({"prompt": "How good?"}, Question(prompt="How good?")),
        ({"train_prompts": ["Rate it.", "Rate this."]}, Question(prompt=None)),
        ({"train_prompts": ["Rate it.", "Rate it."]}, Question(prompt="Rate it.")),
    ],
    ids=["default", "imported function", "lambda", "prompt", "several prompts", "one prompt of the rows"],
)
def test_the_question_of_a_trainer(tmp_path, options, expected):
    options = dict(options)
    rows = rated("training", 2, points=lambda quality: quality)
    if "train_prompts" in options:
        prompts = [quality_messages(prompt) for prompt in options.pop("train_prompts")]
        rows = rows.remove_columns("prompt").add_column("prompt", prompts)
    trainer = demo_trainer(tmp_path, train_dataset=rows, **options)
    assert trainer.question == expected
    assert trainer.train_dataset[0]["prompt"] == (
        quality_messages(expected.prompt) if expected.prompt else quality_messages("Rate it.")
    )
    assert trainer.score_fn is options.get("score_fn", trainer.args.question.parse)


def test_rewards_get_the_scale_and_parser_they_were_not_given(tmp_path):
    own = configure_reward(accuracy_reward, tau=2.0, score_max=50.0)
    trainer = demo_trainer(tmp_path, reward_funcs=[accuracy_reward, format_reward, own, len], **FIELDS)
    plain, formatted, partly, foreign = trainer.reward_funcs
    assert (formatted, foreign) == (format_reward, len)
    assert (plain.__name__, partly.__name__) == ("accuracy_reward", "accuracy_reward")
    assert plain(["\\boxed{80}"], [80.6]) == pytest.approx([math.exp(-2)])
    assert partly(["\\boxed{80}"], [40.0]) == pytest.approx([math.exp(-5)])
    default = demo_trainer(tmp_path / "default", train_dataset=rated("training", 2, points=lambda quality: quality))
    assert default.reward_funcs[0] is accuracy_reward


@pytest.mark.parametrize("options", [{"score_parser": "xml"}, {"score_parser": "nowhere:f"}, {"max_pixels": 0}])
def test_bad_questions_are_refused_by_the_config(options):
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        HawkeyeGRPOConfig("unused", use_cpu=True, bf16=False, **options)


def test_max_pixels_applies_to_the_processor_that_the_trainer_loads(tmp_path):
    rows = rated("training", 2, points=lambda quality: quality)
    args = HawkeyeGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_pixels=3136)
    trainer = HawkeyeGRPOTrainer(str(demo_policy_path()), accuracy_reward, args, rows)
    assert trainer.processing_class.image_processor.size["longest_edge"] == 3136


def test_options_override_what_was_saved_and_code_needs_consent(tmp_path):
    save_questions(tmp_path, {"quality": HUNDRED})
    assert find_question(tmp_path) == HUNDRED
    assert find_question(tmp_path, prompt="Rate.", score_max=10.0, parser="number", score_min=None) == Question(
        "Rate.", 0.0, 10.0, "number", 9408
    )
    save_questions(tmp_path, {"quality": Question(parser="os:system")})
    with pytest.raises(ValueError, match="os:system"):
        find_question(tmp_path)
    assert find_question(tmp_path, parser="number") == Question()
    assert find_question(tmp_path, trust_remote_code=True).parser == "os:system"


def test_without_one_prompt_rows_bring_their_own_and_files_need_one(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for file in demo_policy_path().iterdir():
        (model / file.name).symlink_to(file)
    save_questions(model, {"quality": Question(prompt=None)})
    rows = rated("test", 2, points=lambda quality: quality)
    rows.cast_column("image", ImageFeature()).save_to_disk(tmp_path / "data")
    options = ("--model", model, "--max-new-tokens", 24)
    q_hawkeye("score", tmp_path / "data", "--out", tmp_path / "rows.jsonl", *options)
    Image.new("RGB", (56, 56)).save(tmp_path / "file.png")
    result = CliRunner().invoke(app, [str(word) for word in ("score", tmp_path / "file.png", *options)])
    assert isinstance(result.exception, ValueError)
    assert "prompt" in str(result.exception)
    q_hawkeye("score", tmp_path / "file.png", "--prompt", "Rate it.", *options)


def test_the_scorer_imports_neither_trl_nor_datasets():
    code = (
        "import sys\nfrom q_hawkeye_trl.scoring import HawkeyeScorer, ImageQuality\n"
        "print(*({'trl', 'deepspeed', 'datasets', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
