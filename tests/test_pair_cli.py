"""`q-hawkeye pair` as users run it."""

import subprocess
import sys

import pytest
from datasets import load_from_disk

from pair_sets import dataset, lines_of, picture, save
from q_hawkeye_trl.pairs.decisions import append_decision
from q_hawkeye_trl.pairs.pair_manifest import PairKey


@pytest.fixture
def pair(tmp_path):
    images = [*(picture(n) for n in range(3)), b"broken"]
    data = save(tmp_path / "data", dataset(images, image_id=["a", "b", "[red]c[/red]", "[bold]d"]))

    def run(out, *options):
        command = [sys.executable, "-m", "q_hawkeye_trl", "pair", "--data", data, "--out", tmp_path / out, *options]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)

    return run


def test_a_run_prints_its_result_and_exits_with_1_if_rows_are_unfinished(pair, tmp_path):
    done = pair("out", "--degradations", "jpeg@3, darken@3+banding@2")
    assert done.returncode == 1
    printed = " ".join(done.stdout.split())
    assert "4 rows, 4 made" in printed
    assert "error: [bold]d: the embedded image" in printed
    assert "Unfinished rows: 1" in printed
    assert "Traceback" not in done.stderr
    assert {line["operation"] for line in lines_of(tmp_path / "out")[:3]} <= {"jpeg@3", "darken@3+banding@2"}
    assert len(load_from_disk(str(tmp_path / "out"))) == 4


def test_options_reach_the_settings(pair, tmp_path):
    options = ["--second=none", "--mild-ssim=-1", "--mild-psnr=0", "--drop-mild", "--limit=3", "--seed=7"]
    assert pair("out", *options).returncode == 0
    lines = lines_of(tmp_path / "out")
    assert [(line["verdict"], line["kept"], line["seed"]) for line in lines] == [("too_mild", False, 7)] * 3
    append_decision(tmp_path / "d.jsonl", PairKey.of(lines[0]), "accept")
    pair("again", *options, "--decisions", tmp_path / "d.jsonl")
    assert [line["kept"] for line in lines_of(tmp_path / "again")] == [True, False, False]


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--degradations", "fog@2", ["fog@2", "gaussian_noise"]),
        ("--judge-url", "http://127.0.0.1:1/v1", ["--judge"]),
        ("--workers", "0", ["workers", "0"]),
    ],
)
def test_bad_options_end_in_one_line(pair, tmp_path, option, value, named):
    done = pair("out", option, value)
    assert done.returncode == 1
    assert done.stderr.startswith("q-hawkeye: ")
    assert all(word in done.stderr for word in named)
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
