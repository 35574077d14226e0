"""The training script as a user runs it, at tiny size, and the files that it leaves."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from q_hawkeye_trl.data.koniq import load_koniq
from q_hawkeye_trl.demo.synthetic import write_synthetic_koniq
from q_hawkeye_trl.train import command
from q_hawkeye_trl.train.arguments import parse_arguments
from q_hawkeye_trl.train.run_folder import prepare_run_folder

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "train_koniq.py"
TINY = ["--per_device_train_batch_size", "8", "--num_generations", "4", "--max_steps", "2", "--bf16", "false"]
TINY += ["--use_cpu", "true", "--held_out_images", "6", "--cpu_threads", "1"]
FIGURES = {"srcc_sampled", "plcc_sampled", "srcc_greedy", "plcc_greedy", "parse_rate", "spread"}


@pytest.fixture(scope="session")
def koniq_folder(tmp_path_factory) -> Path:
    """A small synthetic set in KonIQ-10k's layout."""
    folder = tmp_path_factory.mktemp("data") / "koniq10k"
    write_synthetic_koniq(folder, train=16, validation=4, test=8, progress=False)
    return folder


def run_script(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_default_recipe_trains_and_leaves_its_files(koniq_folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    run_script(monkeypatch, "--data_dir", koniq_folder, "--output_dir", out, "--seed", "3", *TINY)
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["before"]) == set(summary["after"]) == FIGURES
    assert summary["seed"] == 3
    assert summary["seconds"] > 0
    lines = read_lines(out / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert lines[0]["perception/kl"] > 0
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "SRCC, sampled" in printed
    assert str(out) in printed
    model, report = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"]
    assert AutoProcessor.from_pretrained(out).tokenizer.eos_token_id == model.generation_config.eos_token_id


def test_resume_takes_the_last_complete_checkpoint_and_ends_like_an_unbroken_run(koniq_folder, tmp_path, monkeypatch):
    options = ["--data_dir", koniq_folder, *TINY, "--save_strategy", "steps", "--save_steps", "1", "--max_steps", "3"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_script(monkeypatch, "--output_dir", whole, *options)
    run_script(monkeypatch, "--output_dir", broken, *options)
    before = json.loads((broken / "summary.json").read_text())["before"]
    (broken / "checkpoint-3" / "trainer_state.json").unlink()  # as if killed while it was written
    weights = broken / "checkpoint-2" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    run_script(monkeypatch, "--output_dir", broken, *options, "--resume_from_checkpoint", "true")
    left, right = load_file(whole / "model.safetensors"), load_file(broken / "model.safetensors")
    assert all(left[name].equal(right[name]) for name in left)
    steps = [line["step"] for line in read_lines(broken / "metrics.jsonl") if "loss" in line]
    assert steps == [1, 2, 3]
    assert json.loads((broken / "summary.json").read_text())["before"] == before


def test_recipe_of_the_release_runs_at_tiny_size(koniq_folder, tmp_path, monkeypatch, tiny_policy_folder):
    recipe = ROOT / "recipes" / "koniq" / "qwen2_5_vl_7b.yaml"
    out = tmp_path / "run"
    small = ["--model_name_or_path", tiny_policy_folder, "--dtype", "float32", "--attn_implementation", "sdpa"]
    small += ["--max_completion_length", "24", "--output_dir", out, "--save_strategy", "no", *TINY]
    run_script(monkeypatch, "--config", recipe, "--data_dir", koniq_folder, *small)
    first = read_lines(out / "metrics.jsonl")[0]
    assert first["perception/gamma"] == pytest.approx(1e-4)
    assert "kl" in first  # beta 0.04


@pytest.fixture(scope="session")
def tiny_policy_folder() -> str:
    from q_hawkeye_trl.demo.policy import demo_policy_path

    return str(demo_policy_path())


def test_prepared_folder_with_pairs_and_without(koniq_folder, tmp_path, monkeypatch):
    columns = ["image", "mos", "image_id"]
    parts = {}
    for name, split in (("train", "training"), ("test", "test")):
        data = load_koniq(koniq_folder, split).select_columns(columns)
        rows = [
            {**row, "degraded_image": None if i % 2 else row["image"].point(lambda v: v // 2)}
            for i, row in enumerate(data)
        ]
        parts[name] = Dataset.from_list(rows)
    DatasetDict(parts).save_to_disk(tmp_path / "pairs")
    out = tmp_path / "run"
    run_script(monkeypatch, "--dataset", tmp_path / "pairs", "--output_dir", out, *TINY)
    lines = [line for line in read_lines(out / "metrics.jsonl") if "loss" in line]
    assert all(line["perception/rows_without_view"] in (0, 4, 8) for line in lines)
    assert any(line["perception/kl"] > 0 for line in lines if "perception/kl" in line)


def test_rewards_by_name(koniq_folder, tmp_path, monkeypatch):
    out, rewards = tmp_path / "run", ["threshold", "rank", "format", "margin", "accuracy", "repetition"]
    options = ["--data_dir", koniq_folder, "--output_dir", out, *TINY, "--max_steps", "1", "--validate", "false"]
    run_script(monkeypatch, *options, "--rewards", *rewards)
    first = read_lines(out / "metrics.jsonl")[0]
    assert all(f"rewards/{name}_reward/mean" in first for name in rewards)


def evaluations(out: Path) -> list[dict]:
    return [line for line in read_lines(out / "metrics.jsonl") if "eval_srcc_sampled" in line]


def test_the_validation_images_are_measured_by_default_and_the_best_model_is_kept(
    koniq_folder, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    run_script(monkeypatch, "--data_dir", koniq_folder, "--output_dir", out, *TINY, "--max_steps", "4")
    lines = evaluations(out)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert {f"eval_{name}" for name in FIGURES} <= lines[0].keys()
    summary = json.loads((out / "summary.json").read_text())
    best = max(lines, key=lambda line: line["eval_srcc_sampled"])
    assert summary["best"] == {
        "step": best["step"],
        "name": "srcc_sampled",
        "value": pytest.approx(best["eval_srcc_sampled"]),
    }
    (checkpoint,) = out.glob("checkpoint-*")
    assert checkpoint.name == f"checkpoint-{best['step']}"
    kept, loaded = load_file(checkpoint / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(kept[name].equal(loaded[name]) for name in kept)
    assert f"checkpoint of step {best['step']} is the best one" in capsys.readouterr().out
    card = (out / "README.md").read_text()
    assert f"checkpoint of step {best['step']}, the best one by srcc\\_sampled" in card
    assert "| validation | validation | 4 |" in card
    assert "uncertainty_alpha: 1.0" in card
    assert not {str(folder) for folder in (tmp_path, koniq_folder, ROOT) if str(folder) in card}


def test_the_card_of_a_resumed_run_has_the_whole_history(koniq_folder, tmp_path, monkeypatch):
    out = tmp_path / "run"
    options = ["--data_dir", koniq_folder, "--output_dir", out, *TINY, "--save_strategy", "steps", "--save_steps", "1"]
    run_script(monkeypatch, *options, "--max_steps", "2")
    run_script(monkeypatch, *options, "--max_steps", "4", "--resume_from_checkpoint", "true")
    assert [line["step"] for line in evaluations(out)] == [1, 2, 3, 4]
    card = (out / "README.md").read_text()
    assert all(f"| {step} | " in card for step in (1, 2, 3, 4))
    assert "since the last start" in card


def test_validation_and_the_choice_of_the_best_can_be_switched_off(koniq_folder, tmp_path, monkeypatch):
    plain, last = tmp_path / "plain", tmp_path / "last"
    options = ["--data_dir", koniq_folder, *TINY]
    run_script(monkeypatch, *options, "--output_dir", plain, "--validate", "false")
    assert evaluations(plain) == []
    run_script(monkeypatch, *options, "--output_dir", last, "--keep_best", "false", "--validation_images", "3")
    assert len(evaluations(last)) == 2
    for out in (plain, last):
        assert not list(out.glob("checkpoint-*"))
        assert json.loads((out / "summary.json").read_text())["best"] is None
    left, right = (load_file(out / "model.safetensors") for out in (plain, last))
    assert all(left[name].equal(right[name]) for name in left)  # validation leaves the training alone


def test_early_stopping_stops(koniq_folder, tmp_path, monkeypatch):
    out = tmp_path / "run"
    options = ["--eval_strategy", "steps", "--eval_steps", "1", "--early_stopping_patience", "1"]
    options += ["--learning_rate", "0", "--max_steps", "5"]  # nothing changes, so nothing gets better
    run_script(monkeypatch, "--data_dir", koniq_folder, "--output_dir", out, *TINY, *options)
    assert [line["step"] for line in evaluations(out)] == [1, 2]


def test_prepared_data_without_a_validation_split(koniq_folder, tmp_path, monkeypatch, capsys):
    parts = {name: load_koniq(koniq_folder, split) for name, split in (("train", "training"), ("test", "test"))}
    DatasetDict(parts).save_to_disk(tmp_path / "data")
    options = ["--dataset", tmp_path / "data", *TINY, "--max_steps", "1"]
    run_script(monkeypatch, *options, "--output_dir", tmp_path / "run")
    assert "Training without validation" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no split 'validation'"):
        run_script(monkeypatch, *options, "--output_dir", tmp_path / "other", "--validation_split", "validation")


def test_checkpoints_between_validations_keep_the_last_model(koniq_folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    options = ["--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "steps", "--save_steps", "2"]
    run_script(monkeypatch, "--data_dir", koniq_folder, "--output_dir", out, *TINY, *options)
    assert "the last model is kept" in capsys.readouterr().out
    assert json.loads((out / "summary.json").read_text())["best"] is None


ERRORS = {
    "unknown option": (["--uncertainty_alfa", "1"], "uncertainty_alfa"),
    "shortened option": (["--uncertainty_alph", "1"], "uncertainty_alph"),
    "option that is no JSON": (["--reward_parameters", "{tau: 1}"], "reward_parameters.*JSON"),
    "no held-out images": (["--held_out_images", "0"], "held_out_images is 0"),
    "no threads": (["--cpu_threads", "0"], "cpu_threads is 0"),
    "unknown attention": (["--model_init_kwargs", '{"attn_implementation": "nonsense"}'], "nonsense"),
    "unknown reward": (["--rewards", "accuracy", "beauty"], "beauty.*accuracy"),
    "unused reward parameter": (["--reward_parameters", '{"rank": {}}'], "rank"),
    "unknown reward parameter": (["--reward_parameters", '{"accuracy": {"sigma": 1}}'], "sigma.*tau"),
    "missing folder": (["--data_dir", "nowhere/koniq10k"], "nowhere/koniq10k"),
    "two sources": (["--dataset", "here"], "data_dir.*dataset"),
    "no checkpoint": (["--resume_from_checkpoint", "true"], "no complete checkpoint"),
    "another scale than the prompt's": (["--score_max", "100"], "score_max 100"),
    "unknown scale": (["--mos_scale", "percent"], "percent.*deqa"),
}


@pytest.mark.parametrize(("arguments", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_bad_arguments(koniq_folder, tmp_path, monkeypatch, arguments, message):
    with pytest.raises(SystemExit, match=message):
        run_script(monkeypatch, "--data_dir", koniq_folder, "--output_dir", tmp_path / "run", *TINY, *arguments)


def test_the_processor_is_of_the_models_revision(tmp_path, monkeypatch):
    words = ["--model_name_or_path", "some/model", "--model_revision", "v2", "--output_dir", str(tmp_path)]
    asked = {}
    processors = SimpleNamespace(from_pretrained=lambda *name, **of: asked.update(of))
    monkeypatch.setattr(command, "AutoProcessor", processors)
    monkeypatch.setattr(command, "HawkeyeGRPOTrainer", lambda **given: given)
    given = command.build_trainer(parse_arguments(words), None, None)
    assert asked["revision"] == given["args"].model_init_kwargs["revision"] == "v2"


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_truncated_image_is_named(koniq_folder, tmp_path, monkeypatch):
    data = tmp_path / "koniq10k"
    shutil.copytree(koniq_folder, data)
    (images,) = (path for path in data.iterdir() if path.is_dir())
    for name in load_koniq(data)["image_id"]:
        cut_in_half(images / name)
    with pytest.raises(SystemExit, match=r"\.\w+ is not a readable image .*truncated.*fetch the file again"):
        run_script(monkeypatch, "--data_dir", data, "--output_dir", tmp_path / "run", *TINY)


@pytest.mark.parametrize("value", ["false", "elsewhere/checkpoint-1"])
def test_a_finished_run_is_overwritten_by_no_form_of_resuming(koniq_folder, tmp_path, monkeypatch, value):
    (tmp_path / "summary.json").write_text("precious")
    options = [f"--output_dir={tmp_path}", *TINY, "--resume_from_checkpoint", value]
    with pytest.raises(SystemExit, match=r"not empty.*name another folder"):
        run_script(monkeypatch, "--data_dir", koniq_folder, *options)
    assert (tmp_path / "summary.json").read_text() == "precious"


@pytest.mark.parametrize("folder", ["run", "{}/run"])
@pytest.mark.parametrize("checkpoint", ["run/checkpoint-1", "{}/run/checkpoint-1", "other/../run/checkpoint-1"])
def test_a_checkpoint_belongs_to_its_run_however_the_paths_are_written(tmp_path, monkeypatch, folder, checkpoint):
    monkeypatch.chdir(tmp_path)
    for name in ("run/checkpoint-1", "other"):
        (tmp_path / name).mkdir(parents=True)
    checkpoint = checkpoint.format(tmp_path)
    args = SimpleNamespace(output_dir=folder.format(tmp_path), resume_from_checkpoint=checkpoint)
    with pytest.raises(ValueError, match="checkpoint-1 is not a complete checkpoint"):  # and not: the folder is taken
        prepare_run_folder(args, numbered=False)


def test_folder_that_cannot_be_written_to(koniq_folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"can't be written to.*name a writable folder"):
        run_script(monkeypatch, "--data_dir", koniq_folder, "--output_dir", tmp_path / "file" / "run", *TINY)


def test_accelerate_launch(koniq_folder, tmp_path):
    words = [sys.executable, "-m", "accelerate.commands.launch", str(SCRIPT), "--data_dir", str(koniq_folder)]
    words += ["--output_dir", str(tmp_path / "run"), *TINY, "--max_steps", "1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "SRCC, sampled" in done.stdout
    assert (tmp_path / "run" / "summary.json").is_file()
