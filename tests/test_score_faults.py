"""`q-hawkeye score` as real processes: killed and resumed, several at once, with broken files among many."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from q_hawkeye_trl.demo.synthetic import IMAGE_FOLDER, write_synthetic_koniq

pytestmark = pytest.mark.slow

OPTIONS = ("--rollouts", "2", "--max-new-tokens", "32", "--batch-size", "8")
LAUNCHER = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("set") / "koniq"
    return write_synthetic_koniq(root, train=0, validation=0, test=400, progress=False) / IMAGE_FOLDER


def command(pictures: Path, out: Path, *options: str, launcher: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, *launcher, "-m", "q_hawkeye_trl", "score", str(pictures), "--out", str(out), *options]


def start(arguments: list[str]) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(arguments: list[str], status: int = 0) -> str:
    process = start(arguments)
    output, errors = process.communicate(timeout=280)
    assert process.returncode == status, errors[-3000:]
    return output + errors


def kill_after(arguments: list[str], journal: Path, lines: int, sign: int = signal.SIGKILL) -> None:
    """Kills a run with all its workers as soon as its journal has a number of lines."""
    process = start(arguments)
    limit = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < limit:
        written = sum(file.read_bytes().count(b"\n") for file in journal.glob("scores-*.jsonl"))
        if written >= lines:
            break
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()[1][-3000:]
    workers = psutil.Process(process.pid).children(recursive=True)  # a launcher's workers are in sessions of their own
    for each in (process, *workers):
        os.kill(each.pid, sign)
    process.communicate(timeout=60)
    psutil.wait_procs(workers, timeout=60)


@pytest.fixture(scope="module")
def unbroken(pictures, tmp_path_factory) -> bytes:
    out = tmp_path_factory.mktemp("unbroken") / "s.jsonl"
    finish(command(pictures, out, *OPTIONS))
    return out.read_bytes()


def test_killed_again_and_again_the_output_is_that_of_an_unbroken_run(pictures, unbroken, tmp_path):
    out = tmp_path / "s.jsonl"
    journal = tmp_path / "s.jsonl.partial"
    rng = random.Random(0)
    lines = 0
    for sign in (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        lines += rng.randint(1, 60)
        kill_after(command(pictures, out, *OPTIONS), journal, lines, sign)
        assert not out.exists()
        lines = sum(file.read_bytes().count(b"\n") for file in journal.glob("scores-*.jsonl"))
    assert "have their score from before" in finish(command(pictures, out, *OPTIONS))
    assert out.read_bytes() == unbroken
    images = [json.loads(line)["image"] for line in unbroken.splitlines()]
    assert len(images) == len(set(images)) == 400
    assert [path.name for path in tmp_path.iterdir()] == ["s.jsonl"]


def test_two_processes_give_the_lines_of_one(pictures, unbroken, tmp_path):
    out = tmp_path / "s.jsonl"
    output = finish(command(pictures, out, *OPTIONS, launcher=LAUNCHER))
    assert "process 1 of 2" in output
    assert out.read_bytes() == unbroken


def test_a_run_of_two_processes_is_finished_by_one_and_the_other_way_round(pictures, unbroken, tmp_path):
    for first, second in ((LAUNCHER, ()), ((), LAUNCHER)):
        out = tmp_path / f"{len(first)}.jsonl"
        kill_after(command(pictures, out, *OPTIONS, launcher=first), Path(f"{out}.partial"), 60)
        finish(command(pictures, out, *OPTIONS, launcher=second))
        assert out.read_bytes() == unbroken


def test_of_a_folder_with_broken_files_all_others_are_scored(pictures, unbroken, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    files = sorted(pictures.iterdir())
    broken = set(random.Random(0).sample(range(len(files)), len(files) // 20))
    for number, file in enumerate(files):
        data = file.read_bytes()
        kinds = (data[: len(data) // 2], b"", b"text", data[:20] + b"\0" * 50 + data[70:])
        (folder / file.name).write_bytes(kinds[number % 4] if number in broken else data)
    out = tmp_path / "s.jsonl"
    finish(command(folder, out, *OPTIONS), status=3)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    expected = [json.loads(line) for line in unbroken.splitlines()]
    assert {number for number, row in enumerate(rows) if row["error"] is not None} == broken
    for number, (row, other) in enumerate(zip(rows, expected, strict=True)):
        if number not in broken:
            assert row | {"image": ""} == other | {"image": ""}


def test_several_processes_need_a_file(pictures):
    process = start([*command(pictures, Path("x"), launcher=LAUNCHER)[:-2]])
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "name one by --out" in errors
