"""Runs of `q-hawkeye prepare` that are killed, and disks that are full: nothing lost, nothing half-written."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from datasets import Image as ImageFeature
from datasets import load_from_disk
from PIL import Image

from iqa_layouts import write_images, write_kadid

ENVIRONMENT = {**os.environ, "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def _command(root: Path, out: Path, *options: str) -> list[str]:
    words = ["prepare", "kadid10k", "--root", root, "--out", out, "--embed", "--workers", "1", *options]
    return [sys.executable, "-m", "q_hawkeye_trl", *map(str, words)]


def _run(root: Path, out: Path, *options: str) -> subprocess.CompletedProcess:
    command = _command(root, out, *options)
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)


def _set(root: Path, references: int, noise: int = 0) -> Path:
    names = [f"I{r:02}_{k:02}_{v:02}.png" for r in range(references) for k in range(5) for v in range(1, 6)]
    rows = [(name, f"{name[:3]}.png", 4.9 - int(name[7:9]) / 2 - n / 1e4, 0.5) for n, name in enumerate(names)]
    write_kadid(root, rows)
    write_images(root / "images", names, (512, 384))
    for number, name in enumerate(names if noise else []):  # pixels that no format shrinks
        pixels = np.random.default_rng(number).integers(0, 256, (noise, noise, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / name)
    return root


def _contents(out: Path) -> dict:
    data = load_from_disk(out)
    raw = ImageFeature(decode=False)
    return {split: list(data[split].cast_column("image", raw)) for split in data}


def _journal(out: Path) -> int:
    """Whole lines of findings."""
    path = out.with_name(out.name + ".partial") / "inspected.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _kill_at_random(root: Path, out: Path, rng: random.Random, images: int) -> bool:
    """Starts a run and kills it at a random point of its work; return whether it was still running."""
    target = rng.randint(_journal(out), images + 1)  # findings on disk, or later: shards, card, the last step
    late = rng.uniform(0, 0.5 if target > images else 0.03)
    process = subprocess.Popen(
        _command(root, out), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and _journal(out) < target:
        time.sleep(0.002)
    try:
        process.wait(late)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    assert process.returncode == 0
    return False


def _kill_until_done(root: Path, folder: Path, kills: int, seed: int) -> None:
    assert _run(root, folder / "whole").returncode == 0
    expected = _contents(folder / "whole")
    images = sum(map(len, expected.values()))
    rng, killed, attempt = random.Random(seed), 0, 0
    out, found = folder / "out-0", 0
    while killed < kills:
        killed += _kill_at_random(root, out, rng, images)
        if out.exists():  # whole, or it would not be there
            assert _contents(out) == expected
            attempt += 1
            out, found = folder / f"out-{attempt}", 0
        else:
            assert _journal(out) >= found, "findings of an earlier run were lost"
            found = _journal(out)
    last = _run(root, out)
    assert last.returncode == 0, last.stderr
    assert _contents(out) == expected
    assert not out.with_name(out.name + ".partial").exists()


def test_a_killed_run_resumes(tmp_path):
    _kill_until_done(_set(tmp_path / "kadid10k", references=4), tmp_path, kills=1, seed=0)


@pytest.mark.slow
def test_twenty_kills_lose_nothing(tmp_path):
    _kill_until_done(_set(tmp_path / "kadid10k", references=60), tmp_path, kills=20, seed=1)


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs whose size the test sets."""
    place = tmp_path / "disk"
    place.mkdir()

    def size(kilobytes: int) -> Path:
        options = f"{'remount,' if os.path.ismount(place) else ''}size={kilobytes}k"
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, text=True
        )
        if mounted.returncode != 0:
            pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
        return place

    yield size
    if os.path.ismount(place):
        subprocess.run(["umount", place], check=True)


# full while the first finding, further ones, the first shard, the second and the last files are written
@pytest.mark.parametrize(
    "sizes", [[600], pytest.param([8, 16, 200, 1000, 1200, 1240], marks=pytest.mark.slow)], ids=["once", "often"]
)
def test_a_full_disk_stops_the_run_and_leaves_nothing_half_written(tmp_path, small_disk, sizes):
    root = _set(tmp_path / "kadid10k", references=4, noise=64)  # 100 images of 12 kB
    assert _run(root, tmp_path / "whole").returncode == 0
    for kilobytes in sizes:
        out = small_disk(kilobytes) / "out"
        process = _run(root, out)
        assert process.returncode == 1, (kilobytes, process.stderr)
        assert "no space left" in process.stderr.lower()
        assert "Traceback" not in process.stderr
        assert not out.exists()
    out = small_disk(20_000) / "out"
    process = _run(root, out)
    assert process.returncode == 0, process.stderr
    assert _contents(out) == _contents(tmp_path / "whole")
