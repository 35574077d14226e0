"""A checkpoint with any file truncated, emptied or missing is reported before training starts."""

import json
import logging
import re
import shutil
from pathlib import Path

import pytest

from harness import build_trainer
from q_hawkeye_trl.checkpointing.checkpoint_files import (
    MANIFEST,
    checkpoint_problem,
    last_complete_checkpoint,
    write_manifest,
)
from q_hawkeye_trl.io.publication import move_folder
from test_resume import OPTIONS, length_of_text
from tiny_models import tiny_policy

DAMAGES = ("cut", "emptied", "gone")
NAMED = {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
NAMED |= {"run_state_0.json", "rollouts_0.pt", MANIFEST}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """A run with two checkpoints, the second inside a window."""
    folder = tmp_path_factory.mktemp("run")
    model, processor = tiny_policy("qwen2_5_vl")
    options = OPTIONS | {"reward_funcs": [length_of_text], "max_steps": 2, "num_iterations": 3}
    build_trainer(folder, model=model, processing_class=processor, **options).train()
    return folder


def damage(path: Path, how: str) -> None:
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 if how == "cut" else 0])


def files_of(checkpoint: Path) -> set[str]:
    return {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}


@pytest.mark.parametrize("how", DAMAGES)
def test_every_damaged_file_is_named_and_the_previous_checkpoint_is_used(run_folder, tmp_path, how):
    checked = 0
    for name in sorted(files_of(run_folder / "checkpoint-2")):
        run = tmp_path / name.replace("/", "-")
        shutil.copytree(run_folder, run)
        assert checkpoint_problem(run / "checkpoint-2") is None
        damage(run / "checkpoint-2" / name, how)
        if (name, how) == (MANIFEST, "gone"):  # nothing else is wrong with it
            assert checkpoint_problem(run / "checkpoint-2") is None
            continue
        assert name in checkpoint_problem(run / "checkpoint-2")
        assert last_complete_checkpoint(run) == run / "checkpoint-1"
        checked += 1
    assert files_of(run_folder / "checkpoint-2") >= NAMED
    assert checked >= len(NAMED) - 1


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", sorted(NAMED - {MANIFEST, "run_state_0.json", "rollouts_0.pt"}))
def test_checkpoints_of_other_trainers_are_checked_by_their_files(run_folder, tmp_path, name, how):
    checkpoint = tmp_path / "checkpoint-2"
    shutil.copytree(run_folder / "checkpoint-2", checkpoint)
    for ours in (MANIFEST, "run_state_0.json", "rollouts_0.pt"):
        (checkpoint / ours).unlink()
    assert checkpoint_problem(checkpoint) is None
    damage(checkpoint / name, how)
    expected = (
        "rng_state" if name == "rng_state.pth" else "weights" if (name, how) == ("model.safetensors", "gone") else name
    )
    assert expected in checkpoint_problem(checkpoint)


def test_the_trainer_skips_incomplete_checkpoints(run_folder, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("q_hawkeye_trl.checkpointing.checkpoint_files"), "propagate", True)
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    damage(run / "checkpoint-2" / "optimizer.pt", "cut")
    model, processor = tiny_policy("qwen2_5_vl")
    options = OPTIONS | {"reward_funcs": [length_of_text], "max_steps": 2, "num_iterations": 3}
    trainer = build_trainer(run, model=model, processing_class=processor, **options)
    trainer.train(resume_from_checkpoint=True)
    assert re.search("checkpoint-2 .*optimizer.pt", caplog.text)
    assert checkpoint_problem(run / "checkpoint-2") is None  # written again
    damage(run / "checkpoint-2" / "scheduler.pt", "gone")
    with pytest.raises(ValueError, match=r"checkpoint-2 .*scheduler\.pt"):
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-2"))
    shutil.rmtree(run)
    with pytest.raises(ValueError, match="no complete checkpoint"):
        trainer.train(resume_from_checkpoint=True)


def test_a_window_is_not_resumed_with_other_settings(run_folder, tmp_path):
    model, processor = tiny_policy("qwen2_5_vl")
    options = OPTIONS | {"reward_funcs": [length_of_text], "max_steps": 2, "num_iterations": 2}
    trainer = build_trainer(tmp_path, model=model, processing_class=processor, **options)
    with pytest.raises(ValueError, match="num_iterations was 3 and is 2"):
        trainer.train(resume_from_checkpoint=str(run_folder / "checkpoint-2"))
    moved = tmp_path / "checkpoint-2"
    shutil.copytree(run_folder / "checkpoint-2", moved)
    progress = json.loads((moved / "run_state_0.json").read_text())
    progress["settings"]["world_size"] = 2
    (moved / "run_state_0.json").write_text(json.dumps(progress))
    write_manifest(moved)
    with pytest.raises(ValueError, match="world_size was 2 and is 1"):
        trainer.train(resume_from_checkpoint=str(moved))


def test_old_checkpoints_are_removed_only_when_the_new_one_is_complete(tmp_path, monkeypatch):
    model, processor = tiny_policy("qwen2_5_vl")
    options = OPTIONS | {"reward_funcs": [length_of_text], "save_total_limit": 1}
    trainer = build_trainer(tmp_path, model=model, processing_class=processor, **options)
    seen = []

    def watched(source, target):
        complete = [path for path in tmp_path.glob("checkpoint-*") if checkpoint_problem(path) is None]
        seen.append((Path(target).name, sorted(path.name for path in complete)))
        move_folder(source, target)

    monkeypatch.setattr("q_hawkeye_trl.checkpointing.staging.move_folder", watched)
    trainer.train()
    assert seen == [("checkpoint-1", []), ("checkpoint-2", ["checkpoint-1"]), ("checkpoint-3", ["checkpoint-2"])]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
