"""Folders, logs, checkpoints and pictures of a run."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from transformers import TrainerControl, TrainerState, TrainingArguments

from q_hawkeye_trl.checkpointing.checkpoint_files import checkpoint_problem, last_complete_checkpoint
from q_hawkeye_trl.report.plots import plot_curves, running_mean
from q_hawkeye_trl.run_facts.launches import append_launch
from q_hawkeye_trl.train.callbacks import HeldOutCallback, MetricsFileCallback
from q_hawkeye_trl.train.launcher import use_cores
from q_hawkeye_trl.train.run_folder import choose_run_folder, create_run_folder, read_metrics, was_started
from q_hawkeye_trl.wording import FIGURES, before_after_table


def filled(folder):
    folder.mkdir(parents=True)
    (folder / "something").touch()
    return folder


def test_a_named_folder_is_taken_as_it_is_when_empty(tmp_path):
    assert choose_run_folder(tmp_path / "new", resume=False, numbered=False) == tmp_path / "new"
    (tmp_path / "empty").mkdir()
    assert choose_run_folder(tmp_path / "empty", resume=False, numbered=False) == tmp_path / "empty"


def test_a_named_folder_with_files_is_refused_unless_the_run_resumes(tmp_path):
    folder = filled(tmp_path / "run")
    with pytest.raises(FileExistsError, match=r"not empty.*--resume_from_checkpoint true"):
        choose_run_folder(folder, resume=False, numbered=False)
    assert choose_run_folder(folder, resume=True, numbered=False) == folder


def test_a_default_folder_counts_on(tmp_path):
    assert choose_run_folder(tmp_path / "demo", resume=False, numbered=True) == tmp_path / "demo"
    filled(tmp_path / "demo")
    assert choose_run_folder(tmp_path / "demo", resume=False, numbered=True) == tmp_path / "demo-2"
    filled(tmp_path / "demo-2")
    assert choose_run_folder(tmp_path / "demo", resume=False, numbered=True) == tmp_path / "demo-3"
    assert choose_run_folder(tmp_path / "demo", resume=True, numbered=True) == tmp_path / "demo-2"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/run can't be written to"):
        create_run_folder(tmp_path / "file" / "run")


def test_a_run_that_never_saved_begins_from_the_start_and_overwrites_no_result(tmp_path):
    assert not was_started(tmp_path)
    for left in ("metrics.jsonl", "before.json", "README.md"):
        (tmp_path / left).write_text("{}")
    assert not was_started(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(FileExistsError, match=r"no checkpoint.*model.safetensors"):
        was_started(tmp_path)
    (tmp_path / "checkpoint-3").mkdir()  # broken or not: not from the start
    assert was_started(tmp_path)


def checkpoint(folder, step):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    save_file({"w": torch.arange(100.0)}, path / "model.safetensors")
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return path


def test_last_complete_checkpoint_counts_by_number(tmp_path):
    for step in (9, 10, 100):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-notes").mkdir()
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-100"


@pytest.mark.parametrize("damage", ["no state", "cut state", "cut weights", "empty weights", "no weights", "no shard"])
def test_damaged_checkpoints_are_passed_over(tmp_path, damage):
    good, bad = checkpoint(tmp_path, 1), checkpoint(tmp_path, 2)
    weights, state = bad / "model.safetensors", bad / "trainer_state.json"
    if damage == "no state":
        state.unlink()
    elif damage == "no weights":
        weights.unlink()
    elif damage == "no shard":
        (bad / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "model-2.safetensors"}}))
    elif damage == "cut state":
        state.write_text(state.read_text()[:-3])
    else:
        weights.write_bytes(weights.read_bytes()[: 0 if damage == "empty weights" else -40])
    assert checkpoint_problem(bad) is not None
    assert checkpoint_problem(good) is None
    assert last_complete_checkpoint(tmp_path) == good


def test_no_whole_checkpoint_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        last_complete_checkpoint(tmp_path)


@pytest.fixture
def arguments(tmp_path):
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")


def test_metrics_file_has_no_gap_and_no_double_after_a_resume(tmp_path, arguments):
    callback, control = MetricsFileCallback(tmp_path), TrainerControl()
    callback.on_train_begin(arguments, TrainerState(), control)
    history = []
    for step in (1, 2, 3):
        logs = {"loss": step / 2, "x": math.nan}
        callback.on_log(arguments, TrainerState(global_step=step), control, logs=logs)
        history.append({**logs, "step": step})
    written = callback.path.read_text()
    ended = {"train_runtime": 1.0, "step": 2}
    # cut off in its fourth line, and lost but for a line
    for left in (written + '{"step": 4, "lo', written.splitlines(keepends=True)[2]):
        callback.path.write_text(left)
        callback.on_train_begin(arguments, TrainerState(global_step=2, log_history=[*history[:2], ended]), control)
        assert callback.path.read_text() == "".join(written.splitlines(keepends=True)[:2])
    callback.on_log(arguments, TrainerState(global_step=3), control, logs={"loss": 9.0})
    lines = read_metrics(callback.path)
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 0.5), (2, 1.0), (3, 9.0)]
    assert lines[0]["x"] is None


def test_a_new_run_begins_a_new_metrics_file(tmp_path, arguments):
    callback = MetricsFileCallback(tmp_path)
    callback.path.write_text('{"step": 7, "loss": 1.0}\n')
    callback.on_train_begin(arguments, TrainerState(), TrainerControl())
    assert read_metrics(callback.path) == []


def test_held_out_figures_before_are_kept_over_a_resume(tmp_path, arguments):
    figures = iter([{"srcc": 0.5}, {"srcc": 0.7}, {"srcc": 0.9}])
    first = HeldOutCallback(lambda: next(figures), tmp_path)
    first.on_train_begin(arguments, TrainerState(), TrainerControl())
    again = HeldOutCallback(lambda: next(figures), tmp_path)
    again.on_train_begin(arguments, TrainerState(global_step=5), TrainerControl())
    again.on_train_end(arguments, TrainerState(global_step=9), TrainerControl())
    assert (again.before, again.after) == ({"srcc": 0.5}, {"srcc": 0.7})


def test_table_shows_both_sides_and_the_change():
    before = dict.fromkeys(FIGURES, 0.5)
    after = dict.fromkeys(FIGURES, 0.625) | {"spread": None}
    lines = before_after_table(before, after, 520).splitlines()
    assert lines[0].split() == ["520", "held-out", "images", "before", "after", "change"]
    assert lines[2].split()[-3:] == ["0.500", "0.625", "+0.125"]
    assert lines[-1].split()[-3:] == ["0.500", "–", "–"]
    assert "–" in before_after_table(None, after, 520)


def test_running_mean_equals_a_loop():
    values = [float(v) for v in (3, 1, 4, 1, 5, 9, 2, 6)]
    expected = []
    for end in range(len(values)):
        part = [values[i] for i in range(len(values)) if end - 3 < i <= end]
        expected.append(sum(part) / len(part))
    assert running_mean(values, 3) == pytest.approx(expected)


def test_curves_are_drawn_for_what_was_logged(tmp_path):
    metrics = [{"step": s, "reward": s / 10, "scores/srcc": None if s < 3 else 0.1 * s} for s in range(1, 9)]
    plot_curves(metrics, tmp_path / "curves.png", title="run")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
    with pytest.raises(ValueError, match="No curve"):
        plot_curves([{"step": 1, "loss": 0.0}], tmp_path / "other.png")


@pytest.fixture
def threads(monkeypatch, tmp_path):
    """Threads that a run on 8 cores gets, in a folder of earlier launches with these threads."""

    def threads(wanted=None, *, device="cpu", earlier=(), **environment) -> int:
        for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        for count in earlier:
            append_launch(tmp_path, {"device": {"threads": count}})
        chosen = [1]
        monkeypatch.setattr("torch.set_num_threads", chosen.append)
        monkeypatch.setattr("q_hawkeye_trl.train.launcher.usable_cores", lambda: 8)
        use_cores(torch.device(device), wanted, tmp_path)
        return chosen[-1]

    return threads


def test_a_run_on_a_cpu_uses_all_cores_divided_by_its_processes(threads):
    assert threads() == threads(OMP_NUM_THREADS="1") == 8  # launchers set 1
    assert threads(OMP_NUM_THREADS="1", LOCAL_WORLD_SIZE="2") == 4
    assert threads(LOCAL_WORLD_SIZE="16") == 1
    assert threads(device="meta") == 1  # nothing is set


def test_the_user_and_the_first_launch_choose_the_threads(threads):
    assert threads(3, OMP_NUM_THREADS="5") == 3
    assert threads(OMP_NUM_THREADS="5") == 1  # torch has read it
    assert threads(earlier=[2, 6]) == 6
    assert threads(OMP_NUM_THREADS="5") == 6
    assert threads(3) == 3
