"""What docs/resume.md says: its commands run, its snippet works, its files, numbers and tests exist."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness import build_trainer
from q_hawkeye_trl.checkpointing.checkpoint_files import MANIFEST
from q_hawkeye_trl.checkpointing.run_state import ROLLOUTS_FILE, STATE_FILE
from q_hawkeye_trl.checkpointing.staging import STAGING
from q_hawkeye_trl.checkpointing.stop_on_signal import SECOND_SIGNAL_AFTER, StopOnSignalCallback
from q_hawkeye_trl.demo.synthetic import write_synthetic_koniq
from test_docs import ROOT, fences, text_of

PAGE = ROOT / "docs" / "resume.md"
TEXT = text_of(PAGE)
COMMANDS = [line for block in fences(PAGE, "bash") for line in block.splitlines() if "examples/" in line]
TESTS = [line for block in fences(PAGE, "bash") for line in block.splitlines() if "pytest" in line]
SMALL = ["--per_device_train_batch_size", "8", "--num_generations", "4", "--max_steps", "20", "--held_out_images", "6"]


@pytest.mark.slow
def test_the_commands_run_one_after_the_other(tmp_path):
    data = write_synthetic_koniq(tmp_path / "koniq10k", train=16, validation=4, test=8, progress=False)
    assert len(COMMANDS) == 2
    for command in COMMANDS:
        words = shlex.split(command)
        if words[:2] == ["accelerate", "launch"]:
            words[:2] = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu"]
            words[5:5] = ["--num_processes", "1"]
        else:
            words[0] = sys.executable
        script = next(word for word in words if word.startswith("examples/"))
        words[words.index(script)] = str(ROOT / script)
        words += ["--data_dir", str(data), *SMALL, "--validate", "false"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr[-3000:]
        lines = [json.loads(line) for line in (tmp_path / "runs/mine/metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [*range(1, 21), 20]  # the second one has nothing left to train
    assert (tmp_path / "runs" / "mine" / "checkpoint-10").is_dir()


def test_the_snippet_works(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1}
    build_trainer(tmp_path, **options).train()
    trainer = build_trainer(tmp_path, **options, max_steps=2)
    (snippet,) = fences(PAGE, "python")
    exec(compile(snippet, str(PAGE), "exec"), {"trainer": trainer})
    assert [line["step"] for line in trainer.state.log_history if "loss" in line] == [1, 2]
    assert any(isinstance(callback, StopOnSignalCallback) for callback in trainer.callback_handler.callbacks)


def test_names_and_numbers_are_those_of_the_code():
    for name in (STATE_FILE.format("RANK"), ROLLOUTS_FILE.format("RANK"), MANIFEST, STAGING):
        assert f"`{name}`" in TEXT
    assert f"within {SECOND_SIGNAL_AFTER:.0f} seconds" in TEXT
    assert f"| {128 + signal.SIGTERM}, {128 + signal.SIGUSR1} |" in TEXT
    assert f"from where it can go on | {128 + signal.SIGINT} |" in TEXT


def test_the_tests_it_names_exist():
    named = set(re.findall(r"`(tests/\w+\.py)`", TEXT)) | {
        word for line in TESTS for word in line.split() if word.startswith("tests/")
    }
    assert named
    for name in named:
        assert (ROOT / name).is_file()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+)`", TEXT))))
def test_the_test_functions_it_names_exist(name):
    assert any(f"def {name}(" in path.read_text("utf-8") for path in Path(ROOT / "tests").glob("test_*.py"))
