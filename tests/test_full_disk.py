"""A disk that fills up while a checkpoint is saved costs the steps since the one before, and nothing else."""

import subprocess
from pathlib import Path

import pytest

from harness import build_trainer
from q_hawkeye_trl.checkpointing.checkpoint_files import list_checkpoints
from q_hawkeye_trl.checkpointing.staging import STAGING, explained_write_errors
from q_hawkeye_trl.errors import CheckpointWriteError
from test_crash import assert_same_run, data, finish, start  # noqa: F401
from test_resume import OPTIONS, assert_resumed_exactly, length_of_text, resume, train
from tiny_models import tiny_policy


@pytest.fixture
def small_disk(tmp_path):
    """Sets the size of a file system in memory, in KiB; gives its folder."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def set_size(kib: int) -> Path:
        nonlocal mounted
        options = f"size={kib}k" + (",remount" if mounted else "")
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"a tmpfs can't be mounted here: {done.stderr.strip()}")
        mounted = True
        return place

    yield set_size
    if mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def kib_of(folder: Path) -> int:
    return sum(-(-path.stat().st_size // 4096) * 4 for path in folder.rglob("*") if path.is_file())


# how much of the second checkpoint fits: it ends in the weights, the optimizer, the optimizer
@pytest.mark.parametrize(
    "share", [pytest.param(0.1, marks=pytest.mark.slow), 0.6, pytest.param(0.9, marks=pytest.mark.slow)]
)
def test_the_previous_checkpoint_is_complete_and_the_run_resumes(tmp_path, small_disk, share):
    options = {"num_iterations": 2}
    whole = train(tmp_path / "whole", **options)
    first, second = (kib_of(tmp_path / "whole" / f"checkpoint-{step}") for step in (1, 2))
    run = small_disk(int(first + second * share) + 16)
    model, processor = tiny_policy("qwen2_5_vl")
    trainer_options = OPTIONS | {"reward_funcs": [length_of_text]} | options
    trainer = build_trainer(run, model=model, processing_class=processor, **trainer_options)
    with pytest.raises(CheckpointWriteError) as error:
        trainer.train()
    assert "checkpoint-2 could not be written" in str(error.value)
    assert "o space left" in str(error.value)
    assert "save_total_limit" in str(error.value)
    assert f"{run}/checkpoint-1 with --resume" in str(error.value)
    assert [path.name for path in list_checkpoints(run, complete=True)] == ["checkpoint-1"]
    assert not (run / STAGING).exists()  # its room is free again
    small_disk(10 * first)
    resumed = resume(run, run / "checkpoint-1", **options)
    assert_resumed_exactly(resumed, whole)


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="shapes differ"), explained_write_errors("it", tmp_path):
        raise RuntimeError("shapes differ")
    with pytest.raises(ZeroDivisionError), explained_write_errors("it", tmp_path):
        raise ZeroDivisionError
    with pytest.raises(NotImplementedError), explained_write_errors("it", tmp_path):  # a RuntimeError without a text
        raise NotImplementedError
    with pytest.raises(CheckpointWriteError, match=r"\(OSError; "), explained_write_errors("it", tmp_path):
        raise OSError


@pytest.mark.slow
def test_the_script_says_so_and_ends_with_status_1(tmp_path, small_disk, data):  # noqa: F811
    whole = tmp_path / "whole"
    options = ("--max_steps", "3", "--save_total_limit", "3")
    finish(start(whole, data, *options))
    first, second = (kib_of(whole / f"checkpoint-{step}") for step in (1, 2))
    out = small_disk(first + second // 2) / "run"
    output = finish(start(out, data, *options), status=1)
    assert "train_koniq.py: checkpoint-2 could not be written" in output
    assert "Traceback" not in output
    small_disk(20 * first)
    finish(start(out, data, *options, resume=True))
    assert_same_run(out, whole)
