"""Files of decisions and verdicts."""

import json
import os

import pytest

from q_hawkeye_trl.pairs.decisions import append_decision, read_decisions
from q_hawkeye_trl.pairs.judge import Verdict, VerdictStore
from q_hawkeye_trl.pairs.pair_manifest import PairKey

A, B = PairKey("a" * 32, "b" * 32), PairKey("a" * 32, "c" * 32)


def test_the_last_decision_counts_and_undo_reverts_it(tmp_path):
    path = tmp_path / "d.jsonl"
    assert read_decisions(path) == {}
    append_decision(path, A, "accept", image_id="ä.png", operation="jpeg@3")
    append_decision(path, B, "reject")
    append_decision(path, A, "reject")
    assert list(read_decisions(path).items()) == [(B, "reject"), (A, "reject")]
    append_decision(path, A, "undo")
    assert read_decisions(path) == {B: "reject"}
    first = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert first["image_id"] == "ä.png"
    assert first["time"].endswith("+00:00")
    with pytest.raises(ValueError, match="maybe"):
        append_decision(path, A, "maybe")


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "[1]",
        "null",
        '{"decision": "accept"}',
        '{"decision": "x", "pixel_hash": "a", "degraded_pixel_hash": "b"}',
    ],
)
def test_invalid_lines_are_named(tmp_path, line):
    path = tmp_path / "d.jsonl"
    append_decision(path, A, "accept")
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"d\.jsonl.*2"):
        read_decisions(path)


def test_a_decision_is_synced_before_the_call_returns(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def watched(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    for _ in range(2):
        append_decision(tmp_path / "d.jsonl", A, "accept")
    assert synced == [str(tmp_path / "d.jsonl"), str(tmp_path), str(tmp_path / "d.jsonl")]


def test_a_full_disk_keeps_the_lines_before(tmp_path, monkeypatch):
    path = tmp_path / "d.jsonl"
    append_decision(path, A, "accept")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        append_decision(path, B, "reject")
    assert read_decisions(path) == {A: "accept"}


def test_verdicts_are_stored_by_judge(tmp_path):
    path = tmp_path / "v.jsonl"
    VerdictStore(path, "judge-a")[A] = Verdict(True, "different\n…")
    VerdictStore(path, "judge-b")[A] = Verdict(False, "same")
    assert VerdictStore(path, "judge-a") == {A: Verdict(True, "different\n…")}
    with path.open("a") as file:
        file.write('{"judge": "judge-a", "pixel_hash": "x"}\n')
    with pytest.raises(ValueError, match=r"v\.jsonl.*3"):
        VerdictStore(path, "judge-a")
