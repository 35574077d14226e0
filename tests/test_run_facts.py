"""The facts of a run: what they stand on, and `run.json` over several launches."""

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from harness import build_trainer
from q_hawkeye_trl.demo.synthetic import write_synthetic_koniq
from q_hawkeye_trl.run_facts import machine
from q_hawkeye_trl.run_facts.fingerprint import data_fingerprint
from q_hawkeye_trl.run_facts.launches import (
    FACTS_FILE,
    RunFactsCallback,
    append_launch,
    describe_facts,
    differences,
    read_launches,
)
from tiny_models import tiny_dataset, tiny_policy

SCRIPT = Path(__file__).parents[1] / "examples" / "train_koniq.py"
SECRET = "correct-horse-battery"


def git(folder, *arguments):
    identity = {f"GIT_{who}_{what}": "someone" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    command = ["git", "-C", str(folder), "-c", "init.defaultBranch=main", *arguments]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | identity
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init")
    return folder


def test_git_without_a_checkout_and_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert machine.git_state(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.git_state(tmp_path) is None


def test_git_that_does_not_answer(checkout, monkeypatch):
    def late(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(machine.subprocess, "run", late)
    assert machine.git_state(checkout) is None


def test_git_before_the_first_commit_clean_and_dirty(checkout):
    assert machine.git_state(checkout) == {"commit": None, "branch": "main", "dirty": False}
    (checkout / "code.py").write_text("a = 1\n")
    git(checkout, "add", "code.py")
    git(checkout, "commit", "-m", "first")
    commit = git(checkout, "rev-parse", "HEAD")
    (checkout / "runs").mkdir()
    (checkout / "runs" / "log").touch()  # not tracked: what a run writes makes no code dirty
    assert machine.git_state(checkout / "runs") == {"commit": commit, "branch": "main", "dirty": False}
    (checkout / "code.py").write_text("a = 2\n")
    state = machine.git_state(checkout)
    assert state == {"commit": commit, "branch": "main", "dirty": True}
    code = describe_facts({"git": state, "versions": machine.package_versions(), "platform": {"python": "3"}})["code"]
    assert commit[:12] in code
    assert "uncommitted" in code
    git(checkout, "add", "code.py")
    assert machine.git_state(checkout)["dirty"]  # staged
    git(checkout, "commit", "-m", "second")
    git(checkout, "checkout", "--detach")
    assert machine.git_state(checkout)["branch"] is None


def test_the_address_of_the_remote_is_not_told(checkout):
    (checkout / "code.py").touch()
    git(checkout, "add", "code.py")
    git(checkout, "commit", "-m", "first")
    git(checkout, "remote", "add", "origin", f"https://me:{SECRET}@host/repository")
    git(checkout, "config", "branch.main.remote", "origin")
    git(checkout, "config", "branch.main.merge", "refs/heads/main")
    assert SECRET not in json.dumps(machine.git_state(checkout))


def test_missing_packages_are_said(monkeypatch):
    def version(name):
        if name in ("deepspeed", "vllm"):
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(machine, "version", version)
    assert machine.package_versions(("trl", "deepspeed", "vllm")) == {"trl": "1.0", "deepspeed": None, "vllm": None}


def train(folder, **options):
    rows = tiny_dataset(4)
    trainer = build_trainer(folder, train_dataset=rows, **options)
    trainer.add_callback(RunFactsCallback(trainer, held_out=rows.select([0])))
    trainer.train()
    return rows


def test_a_run_writes_and_prints_its_facts(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("MY_API_KEY", SECRET)
    rows = train(tmp_path / "run", hub_token=SECRET, seed=7, data_seed=8, degradation_seed=9)
    text = (tmp_path / "run" / FACTS_FILE).read_text()
    printed = capsys.readouterr().out
    assert SECRET not in text + printed
    (facts,) = json.loads(text)["launches"]
    assert facts["seeds"] == {"seed": 7, "data_seed": 8, "degradation_seed": 9}
    assert facts["data"]["train"]["sha256"] == data_fingerprint(rows)["sha256"]
    assert facts["data"]["held_out"]["rows"] == 1
    assert facts["batch"] == {
        "rollouts_per_step": 8,
        "rollouts_per_prompt": 4,
        "prompts_per_step": 2.0,
        "steps_per_generation": 1,
        "num_iterations": 1,
    }
    assert facts["processes"]["world_size"] == 1
    assert facts["model"]["parameters"] == sum(p.numel() for p in tiny_policy()[0].parameters())
    assert facts["device"]["kind"] == "cpu"
    assert facts["resumed_at_step"] is None
    assert "Launch 1 of this run" in printed
    assert "seed 7, data_seed 8, degradation_seed 9" in printed
    assert facts["data"]["train"]["sha256"][:12] in printed


def test_a_second_launch_keeps_the_first_and_says_what_changed(tmp_path, monkeypatch, capsys):
    train(tmp_path / "run")
    first = (tmp_path / "run" / FACTS_FILE).read_text()
    assert "changed since" not in capsys.readouterr().out
    train(tmp_path / "run", seed=3, learning_rate=1e-5)
    launches = read_launches(tmp_path / "run" / FACTS_FILE)
    assert [launch["seeds"]["seed"] for launch in launches] == [42, 3]
    assert launches[0] == json.loads(first)["launches"][0]
    printed = capsys.readouterr().out
    assert "Launch 2 of this run" in printed
    assert "changed since launch 1: seeds.seed: 42 -> 3" in printed
    assert "settings.HawkeyeGRPOConfig.learning_rate: 0.001 -> 1e-05" in printed
    assert printed.count("changed since") == 3  # the seed stands among the settings too


def test_stock_grpo_has_facts_too(tmp_path):
    train(tmp_path / "run", stock=True)
    (facts,) = read_launches(tmp_path / "run" / FACTS_FILE)
    assert facts["seeds"]["degradation_seed"] is None
    assert facts["model"]["shares_prompt"] is None


@pytest.mark.parametrize("content", ["{", "[]", '{"launches": 3}', '{"other": []}'])
def test_a_foreign_file_is_left_as_it_is(tmp_path, content):
    (tmp_path / FACTS_FILE).write_text(content)
    with pytest.raises(ValueError, match=r"run\.json"):
        append_launch(tmp_path, {"started": "now"})
    assert (tmp_path / FACTS_FILE).read_text() == content


def test_a_full_disk_leaves_the_file_of_before(tmp_path, monkeypatch):
    append_launch(tmp_path, {"started": "first"})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("q_hawkeye_trl.io.atomic.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        append_launch(tmp_path, {"started": "second"})
    assert read_launches(tmp_path / FACTS_FILE) == [{"started": "first"}]


def test_differences_name_what_came_and_went():
    before = {"started": "a", "git": {"commit": "1"}, "data": {"train": {"rows": 3}}, "versions": {"trl": "1.16.0"}}
    now = {"started": "b", "git": None, "data": {"train": {"rows": 3}}, "versions": {"trl": "1.16.1"}}
    assert differences(before, now) == ["git.commit: 1 -> none", "versions.trl: 1.16.0 -> 1.16.1"]
    assert differences(now, now | {"started": "c"}) == []


@pytest.mark.slow
def test_two_processes_write_one_launch(tmp_path):
    write_synthetic_koniq(tmp_path / "data", train=8, validation=2, test=4, progress=False)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(SCRIPT), "--data_dir", str(tmp_path / "data"), "--output_dir", str(tmp_path / "run")]
    options = "--per_device_train_batch_size 4 --num_generations 4 --max_steps 1 --use_cpu true --bf16 false"
    command += [*options.split(), "--held_out_images", "4", "--validate", "false", "--cpu_threads", "1"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert process.returncode == 0, process.stderr[-3000:]
    assert process.stdout.count("Launch 1 of this run") == 1
    (facts,) = read_launches(tmp_path / "run" / FACTS_FILE)
    assert facts["processes"]["world_size"] == 2
    assert facts["processes"]["distributed_type"] == "MULTI_CPU"
    assert facts["processes"]["backend"] == "gloo"
    assert facts["batch"]["prompts_per_step"] == 2.0
    assert set(facts["settings"]) == {"HawkeyeGRPOConfig", "ScriptArguments", "ModelConfig"}
    assert facts["data"]["held_out"]["rows"] == 4
