"""Files written atomically, folders published, locks and journals; crashes are played by killing processes."""

import json
import signal
import subprocess
import sys

import pytest

from q_hawkeye_trl.io.atomic import open_atomic, remove_partials, write_json, write_text
from q_hawkeye_trl.io.journal import append_line, read_lines
from q_hawkeye_trl.io.lock import locked
from q_hawkeye_trl.io.outputs import check_outputs, refuse_inside, refuse_taken
from q_hawkeye_trl.io.publication import move_folder, publish_folder, resumable_folder


def test_an_error_keeps_the_old_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(TypeError), open_atomic(path) as file:
        print("new", file=file, flush=True) or file.write(None)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    code = (
        "import os, signal, sys; from q_hawkeye_trl.io.atomic import open_atomic\n"
        "with open_atomic(sys.argv[1]) as file:\n"
        "    file.write('new'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, path]).returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    remove_partials(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_numbers_that_json_lacks_become_null(tmp_path):
    write_json(tmp_path / "a.json", {"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": None}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": [1.5, None], "c": {"d": None}}


def test_outputs_are_checked_before_the_work(tmp_path):
    (tmp_path / "there").write_text("")
    with pytest.raises(FileExistsError, match="there"):
        check_outputs(tmp_path / "there", overwrite=False)
    check_outputs(tmp_path / "there", None, tmp_path / "new" / "file", overwrite=True)
    with pytest.raises(ValueError, match="twice"):
        check_outputs(tmp_path / "twice", tmp_path / "." / "twice", overwrite=False)
    with pytest.raises(OSError, match="there"):
        check_outputs(tmp_path / "there" / "file", overwrite=False)


def test_taken_and_inner_folders_are_refused(tmp_path):
    refuse_taken(tmp_path)
    refuse_taken(tmp_path / "missing")
    (tmp_path / "file").write_text("")
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(FileExistsError, match=taken.name):
            refuse_taken(taken)
    with pytest.raises(ValueError, match="inner"):
        refuse_inside(tmp_path / "inner", [tmp_path])
    refuse_inside(tmp_path.parent / "beside", [tmp_path])


def test_a_folder_appears_complete_or_not_at_all(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(TypeError), publish_folder(out) as staging:
        (staging / "a").write_text(None)
    assert list(tmp_path.iterdir()) == []
    with publish_folder(out) as staging:
        (staging / "a").write_text("a")
        assert not out.exists()
    assert (out / "a").read_text() == "a"
    with pytest.raises(FileExistsError, match="out"), publish_folder(out):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def write_half(folder):
    folder.mkdir()
    (folder / "a").write_text("a")
    folder.mkdir()


def test_a_resumable_folder_keeps_what_a_failed_run_made(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(FileExistsError), resumable_folder(out) as work:
        write_half(work / "data")
    with resumable_folder(out) as work:
        with pytest.raises(BlockingIOError, match="out"), resumable_folder(out):
            pass
        move_folder(work / "data", out)
    assert (out / "a").read_text() == "a"
    with pytest.raises(FileExistsError, match="out"), resumable_folder(out):
        pass


@pytest.mark.parametrize("name", ["lock", "."])
def test_a_lock_ends_with_its_process(tmp_path, name):
    code = (
        "import sys, time; from q_hawkeye_trl.io.lock import locked\n"
        "with locked(sys.argv[1], busy='taken'): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path / name], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match="taken"), locked(tmp_path / name, busy="taken"):
            pass
    finally:
        holder.kill()
        holder.wait()
    with locked(tmp_path / name, busy="taken"):
        pass


@pytest.mark.parametrize("cut", ['{"a": ', '{"a": 2}'])
def test_a_line_that_a_crash_cut_off_is_replaced(tmp_path, cut):
    path = tmp_path / "journal.jsonl"
    append_line(path, {"a": 1})
    with open(path, "a") as file:
        file.write(cut)
    assert [line.content for line in read_lines(path)] == [{"a": 1}]
    append_line(path, {"a": "é"}, sync=False)
    lines = list(read_lines(path))
    assert [line.content for line in lines] == [{"a": 1}, {"a": "é"}]
    with open(path, "rb") as file:
        file.seek(lines[1].offset)
        assert json.loads(file.readline()) == {"a": "é"}


def test_damaged_lines_are_named_and_missing_files_are_empty(tmp_path):
    path = tmp_path / "journal.jsonl"
    assert list(read_lines(path)) == []
    path.write_text('{"a": 1}\nnonsense\n')
    with pytest.raises(ValueError, match=r"journal\.jsonl.*2"):
        list(read_lines(path))


def test_processes_append_to_one_file(tmp_path):
    code = (
        "import sys; from q_hawkeye_trl.io.journal import append_line\n"
        "for i in range(200): append_line(sys.argv[1], {'who': sys.argv[2], 'i': i, 'pad': 'x' * 500}, sync=False)"
    )
    path = tmp_path / "journal.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", code, path, str(n)]) for n in range(3)]
    assert all(writer.wait() == 0 for writer in writers)
    found = [(line.content["who"], line.content["i"]) for line in read_lines(path)]
    assert sorted(found) == sorted((str(n), i) for n in range(3) for i in range(200))
