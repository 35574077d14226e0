"""The training script, killed repeatedly and resumed, equals an uninterrupted run."""

import json
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from q_hawkeye_trl.checkpointing.checkpoint_files import list_checkpoints
from q_hawkeye_trl.checkpointing.staging import STAGING
from q_hawkeye_trl.demo.synthetic import write_synthetic_koniq
from test_resume import without_times

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "train_koniq.py"
TINY = ["--per_device_train_batch_size", "8", "--num_generations", "4", "--bf16", "false", "--use_cpu", "true"]
TINY += ["--held_out_images", "6", "--validation_images", "3", "--validation_passes", "2"]
TINY += ["--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "2", "--num_iterations", "2"]


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "koniq10k"
    write_synthetic_koniq(folder, train=16, validation=4, test=8, progress=False)
    return folder


def arguments(out: Path, data: Path, *options: str) -> list[str]:
    return ["--data_dir", str(data), "--output_dir", str(out), *TINY, *options]


def start(out: Path, data: Path, *options: str, slow: float = 0.0, resume: bool = False) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "tests" / "slow_disk.py"), str(slow), str(SCRIPT)]
    command += arguments(out, data, *options)
    command += ["--resume_from_checkpoint", "true"] if resume else []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen, status: int = 0) -> str:
    output, _ = process.communicate(timeout=280)
    assert process.returncode == status, output[-3000:]
    return output


def wait_until(condition, process: subprocess.Popen) -> None:
    limit = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < limit
        time.sleep(0.002)


def kill(process: subprocess.Popen) -> None:
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()


def inode_of(path: Path) -> int:
    return path.stat().st_ino if path.exists() else 0


def steps_logged(out: Path) -> int:
    lines = (out / "metrics.jsonl").read_bytes().splitlines() if (out / "metrics.jsonl").is_file() else []
    return sum(b'"loss"' in line for line in lines)


def last_step(out: Path) -> int:
    checkpoints = list_checkpoints(out, complete=True)
    return int(checkpoints[0].name.split("-")[-1]) if checkpoints else 0


def kill_in_a_write(process: subprocess.Popen, out: Path, step: int, seconds: float) -> None:
    """Kills while the checkpoint of a step is being written, some time after its folder appeared."""
    place = out / STAGING / f"checkpoint-{step}"
    wait_until(place.is_dir, process)
    time.sleep(seconds)
    kill(process)
    assert place.is_dir()  # still in writing
    assert not (out / f"checkpoint-{step}").exists()


def assert_same_run(out: Path, whole: Path) -> None:
    left, right = load_file(out / "model.safetensors"), load_file(whole / "model.safetensors")
    assert left.keys() == right.keys()
    assert all(left[name].equal(right[name]) for name in left)
    lines, expected = (
        without_times([json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()])
        for folder in (out, whole)
    )
    assert lines == expected
    summary, other = (json.loads((folder / "summary.json").read_text()) for folder in (out, whole))
    for key in ("before", "after", "best", "seed", "held_out_images", "versions"):
        assert summary[key] == other[key]
    assert not (out / STAGING).exists()
    names, others = ({path.name for path in folder.iterdir()} for folder in (out, whole))
    assert names == others


@pytest.mark.slow
def test_killed_in_a_write_and_resumed(data, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "broken"
    options = ("--max_steps", "3")
    first = start(out, data, *options, "--resume_from_checkpoint", "auto", slow=0.3)  # nothing there: from the start
    kill_in_a_write(first, out, 2, 0.3)
    assert last_step(out) == 1  # inside a window of two steps
    for folder, more in ((out, ("--resume_from_checkpoint", "true")), (whole, ())):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments(folder, data, *options, *more)])
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert_same_run(out, whole)


@pytest.mark.slow
def test_a_run_killed_ten_times_equals_an_uninterrupted_one(data, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "broken"
    options = ("--max_steps", "16")
    uninterrupted = start(whole, data, *options)
    rng = random.Random(0)
    lives: list[int] = []  # last checkpoint at the beginning of each
    for number in range(10):
        last = last_step(out)
        lives.append(last)
        log_before = inode_of(out / "metrics.jsonl")
        process = start(out, data, *options, "--resume_from_checkpoint", "auto", slow=0.25)
        if number % 2 == 0:  # the first one before there is a checkpoint
            kill_in_a_write(process, out, last + min(number, 2) // 2 + 1, rng.uniform(0, 0.9))
        else:
            wait_until(lambda before=log_before: inode_of(out / "metrics.jsonl") not in (0, before), process)
            wait_until(lambda step=last + 1: steps_logged(out) >= step, process)
            time.sleep(rng.uniform(0, 2.5))  # somewhere in this step's checkpoint, the next step or its checkpoint
            kill(process)
    assert lives[:2] == [0, 0]
    assert 4 <= last_step(out) < 16
    finish(start(out, data, *options, resume=True))
    finish(uninterrupted)
    assert_same_run(out, whole)
