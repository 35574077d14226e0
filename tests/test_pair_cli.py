"""`q-hawkeye pair` as people run it."""

import subprocess
import sys

import pytest
from datasets import load_from_disk

from pair_sets import dataset, picture, save
from q_hawkeye_trl.pairs.decisions import append_decision
from q_hawkeye_trl.pairs.pair_manifest import PairKey, read_manifest


def q_hawkeye(*arguments, **options):
    command = [sys.executable, "-m", "q_hawkeye_trl", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


@pytest.fixture
def data(tmp_path):
    images = [*(picture(n) for n in range(3)), b"broken"]
    return save(tmp_path / "data", dataset(images, image_id=["a", "b", "[red]c[/red]", "[bold]d"]))


def test_a_run_says_what_came_out_and_its_exit_status_whether_anything_is_missing(data, tmp_path):
    done = q_hawkeye("pair", "--data", data, "--out", tmp_path / "out", "--degradations", "jpeg@3, darken@3+banding@2")
    assert done.returncode == 1
    assert "4 rows, 4 made by this run" in done.stdout
    assert "error: [bold]d: the embedded image is not a readable image" in " ".join(done.stdout.split())
    assert "Unfinished rows: 1." in done.stdout
    assert "Traceback" not in done.stderr
    assert {line["operation"] for line in read_manifest(tmp_path / "out").to_pylist()[:3]} <= {
        "jpeg@3",
        "darken@3+banding@2",
    }
    assert len(load_from_disk(str(tmp_path / "out"))) == 4


def test_options_reach_the_settings(data, tmp_path):
    options = [
        "--second",
        "none",
        "--mild-ssim",
        "-1",
        "--mild-psnr",
        "0",
        "--drop-mild",
        "--limit",
        "3",
        "--seed",
        "7",
    ]
    done = q_hawkeye("pair", "--data", data, "--out", tmp_path / "out", *options)
    assert done.returncode == 0
    lines = read_manifest(tmp_path / "out").to_pylist()
    assert [line["verdict"] for line in lines] == ["too_mild"] * 3
    assert not any(line["kept"] for line in lines)
    assert {line["seed"] for line in lines} == {7}
    key = PairKey(lines[0]["pixel_hash"], lines[0]["degraded_pixel_hash"])
    append_decision(tmp_path / "d.jsonl", key, "accept")
    done = q_hawkeye(
        "pair", "--data", data, "--out", tmp_path / "again", *options, "--decisions", tmp_path / "d.jsonl"
    )
    assert [line["kept"] for line in read_manifest(tmp_path / "again").to_pylist()] == [True, False, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--degradations", "fog@2"], "Unknown degradation 'fog@2'; the known kinds are gaussian_noise"),
        (["--judge-url", "http://127.0.0.1:1/v1"], "--judge-url needs --judge"),
        (["--rejected", "burn"], "drop, strengthen"),
        (["--workers", "0"], "workers is 0"),
        (["--decisions", "nowhere"], "no file of decisions nowhere"),
    ],
)
def test_bad_options_end_in_their_message(data, tmp_path, options, message):
    done = q_hawkeye("pair", "--data", data, "--out", tmp_path / "out", *options)
    assert done.returncode == 1
    assert done.stderr.startswith("q-hawkeye: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
