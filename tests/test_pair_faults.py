"""Failures of a run of `q-hawkeye pair`: killed at any moment, a killed worker, a full disk."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datasets import load_from_disk

from pair_sets import dataset, files_of, make, picture, save
from q_hawkeye_trl.pairs.chunks import ROWS_PER_CHUNK


def start(data, out, workers=1):
    command = [sys.executable, "-m", "q_hawkeye_trl", "pair", "--data", str(data), "--out", str(out)]
    command += ["--workers", str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def children(pid):
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()
    return [int(child) for child in listed]


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timeout"
        time.sleep(0.05)


@pytest.mark.slow
def test_kill_9_at_random_points_20_times(tmp_path):
    """After 20 killed runs, one that is left alone ends with the folder of an undisturbed run."""
    images = [tmp_path / f"{n}.jpg" for n in range(500)]
    for n, file in enumerate(images):
        picture(n % 50, (160 + n // 50, 120)).save(file, quality=92)
    data = save(tmp_path / "data", dataset(images))
    with start(data, tmp_path / "reference") as process:
        assert process.wait() == 0
    reference = files_of(tmp_path / "reference")
    rng = random.Random(0)
    out, work, killed, at_work = tmp_path / "out", tmp_path / "out.partial", 0, 0

    def done() -> int:
        return len(list(work.glob("parts/*.parquet")))

    while killed < 20:
        wanted = done() + rng.choice([0, 1, 1, 2, 3, 5, 8])  # chunks done before the kill; the machine may be slow
        with start(data, out, workers=rng.choice([1, 2])) as process:
            while process.poll() is None and done() < wanted:
                time.sleep(0.02)
            time.sleep(rng.uniform(0, 1.0 if wanted == 0 else 0.4))
            if process.poll() is None:
                at_work += done() > 0
                process.kill()
                killed += 1
        if out.exists():  # complete, or absent
            assert files_of(out) == reference
            shutil.rmtree(out)
    assert at_work >= 10  # kills hit runs that had done something
    with start(data, out, workers=2) as process:
        assert process.wait() == 0
    assert files_of(out) == reference
    assert not work.exists()
    assert len(load_from_disk(str(out))) == 500


@pytest.mark.slow
def test_workers_end_with_a_killed_parent_and_a_killed_worker_is_reported(tmp_path):
    data = save(tmp_path / "data", dataset([picture(n, (320, 240)) for n in range(200)]))
    with start(data, tmp_path / "out", workers=2) as process:
        wait_for(lambda: len(children(process.pid)) >= 2)
        workers = children(process.pid)
        process.kill()
        process.wait()
        wait_for(lambda: not any(os.path.exists(f"/proc/{worker}") for worker in workers))
    with start(data, tmp_path / "out", workers=2) as process:
        wait_for(lambda: list(tmp_path.glob("out.partial/data/*.arrow")) or process.poll() is not None)
        spawned = [c for c in children(process.pid) if "spawn_main" in Path(f"/proc/{c}/cmdline").read_text()]
        os.kill(spawned[0], signal.SIGKILL)
        printed = process.communicate()[0]
        assert process.returncode == 1
        assert "A worker was killed" in printed
        assert not (tmp_path / "out").exists()
    with start(data, tmp_path / "out") as process:
        assert process.wait() == 0
    assert len(load_from_disk(str(tmp_path / "out"))) == 200


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"a tmpfs can't be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_full_disk_is_reported_and_the_run_resumes_when_there_is_space(tmp_path, small_disk, workers):
    data = save(tmp_path / "data", dataset([picture(n, (160, 120)) for n in range(160)]))
    make(data, tmp_path / "reference")
    out, work = small_disk / "out", small_disk / "out.partial"
    with pytest.raises(OSError, match=r"no space left.*out"):
        make(data, out, workers)
    assert not out.exists()
    assert not list(work.rglob("*.partial"))
    done = list(work.glob("parts/*.parquet"))
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    assert make(data, out, workers).made == 160 - ROWS_PER_CHUNK * len(done)
    assert files_of(out) == files_of(tmp_path / "reference")
