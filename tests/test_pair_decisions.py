"""Files of decisions and verdicts: appended, read back, cut off by crashes."""

import json
import os
import subprocess
import sys

import pytest

from q_hawkeye_trl.io.journal import append_line, read_lines
from q_hawkeye_trl.pairs.decisions import append_decision, read_decisions
from q_hawkeye_trl.pairs.judge import Verdict, VerdictStore
from q_hawkeye_trl.pairs.pair_manifest import PairKey

A, B = PairKey("a" * 32, "b" * 32), PairKey("a" * 32, "c" * 32)


def test_the_last_decision_counts_and_undo_takes_it_back(tmp_path):
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
    with pytest.raises(ValueError, match="accept, reject, undo"):
        append_decision(path, A, "maybe")


def test_a_line_that_a_crash_cut_off_is_dropped_and_replaced(tmp_path):
    path = tmp_path / "d.jsonl"
    append_decision(path, A, "accept")
    whole = path.read_bytes()
    for cut in (1, 20, 5000):
        path.write_bytes(whole + b'{"decision": "rej' + b"x" * (cut - 1))
        assert read_decisions(path) == {A: "accept"}
        append_decision(path, B, "reject")
        assert path.read_bytes().startswith(whole)
        assert read_decisions(path) == {A: "accept", B: "reject"}
    path.write_bytes(b"half a first line")
    assert read_decisions(path) == {}
    append_decision(path, A, "accept")
    assert read_decisions(path) == {A: "accept"}


NO_DECISIONS = [
    "no json",
    "[1]",
    "null",
    '{"decision": "accept"}',
    '{"decision": "x", "pixel_hash": "a", "degraded_pixel_hash": "b"}',
]


@pytest.mark.parametrize("line", NO_DECISIONS)
def test_a_line_that_is_no_decision_is_named(tmp_path, line):
    path = tmp_path / "d.jsonl"
    append_decision(path, A, "accept")
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"d\.jsonl, line 2: expected"):
        read_decisions(path)


def test_each_line_is_synced_before_the_call_returns(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync

    def watched(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    append_line(tmp_path / "d.jsonl", {"a": 1})
    assert synced == [str(tmp_path / "d.jsonl"), str(tmp_path)]
    append_line(tmp_path / "d.jsonl", {"a": 2})
    assert synced[2:] == [str(tmp_path / "d.jsonl")]


def test_several_processes_append_whole_lines(tmp_path):
    code = (
        "import sys; from q_hawkeye_trl.io.journal import append_line\n"
        "for n in range(60): append_line(sys.argv[1], {'who': sys.argv[2], 'n': n, 'text': 'x' * 3000})"
    )
    path = tmp_path / "d.jsonl"
    processes = [subprocess.Popen([sys.executable, "-c", code, str(path), who]) for who in "ab"]
    assert [process.wait() for process in processes] == [0, 0]
    lines = [line.content for line in read_lines(path)]
    for who in "ab":
        assert [line["n"] for line in lines if line["who"] == who] == list(range(60))


def test_a_full_disk_leaves_the_lines_before(tmp_path, monkeypatch):
    path = tmp_path / "d.jsonl"
    append_decision(path, A, "accept")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        append_decision(path, B, "reject")
    assert read_decisions(path) == {A: "accept"}


def test_a_line_that_is_no_verdict_is_named(tmp_path):
    (tmp_path / "v.jsonl").write_text('{"judge": "another"}\n{"judge": "a", "pixel_hash": "x"}\n')
    with pytest.raises(ValueError, match=r"v\.jsonl, line 2: a verdict without 'degraded_pixel_hash'"):
        VerdictStore(tmp_path / "v.jsonl", "a")


def test_verdicts_are_kept_by_judge(tmp_path):
    path = tmp_path / "v.jsonl"
    store = VerdictStore(path, "judge-a")
    store.add(A, Verdict(True, "different\n…"))
    VerdictStore(path, "judge-b").add(A, Verdict(False, "same"))
    again = VerdictStore(path, "judge-a")
    assert again.get(A) == Verdict(True, "different\n…")
    assert again.get(B) is None
