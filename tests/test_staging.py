"""Nodes without the main process publish their part of a checkpoint, on their own disk and on a shared one."""

from q_hawkeye_trl.checkpointing.checkpoint_files import MANIFEST
from q_hawkeye_trl.checkpointing.staging import STAGING, publish_checkpoint, publish_node_share


def written(run_dir, text: str):
    folder = run_dir / STAGING / "checkpoint-2"
    folder.mkdir(parents=True)
    (folder / "rng_state_1.pth").write_text(text)
    return folder


def test_a_node_with_a_disk_of_its_own_moves_its_share(tmp_path):
    for text in ("first", "written again"):
        written(tmp_path, text)
        publish_node_share(tmp_path, "checkpoint-2")
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
        assert (tmp_path / "checkpoint-2" / "rng_state_1.pth").read_text() == text


def test_a_node_that_still_sees_the_moved_folder_keeps_the_complete_checkpoint(tmp_path):
    written(tmp_path, "whole")
    publish_checkpoint(tmp_path, "checkpoint-2")
    publish_node_share(tmp_path, "checkpoint-2")
    stale = written(tmp_path, "stale")  # as a network file system's cache shows it
    publish_node_share(tmp_path, "checkpoint-2")
    assert (tmp_path / "checkpoint-2" / "rng_state_1.pth").read_text() == "whole"
    assert (tmp_path / "checkpoint-2" / MANIFEST).is_file()
    assert stale.is_dir()


def test_a_node_without_a_share_does_nothing(tmp_path):
    publish_node_share(tmp_path, "checkpoint-2")
    assert not list(tmp_path.iterdir())
