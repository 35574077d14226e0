"""The folder of pairs is what the training script eats: two sets in it, and rows without a pair."""

import json
import runpy
import sys
from pathlib import Path

from datasets import DatasetDict

from pair_sets import dataset, picture, save
from q_hawkeye_trl.pairs.decisions import append_decision
from q_hawkeye_trl.pairs.pair_manifest import PairKey, read_manifest
from q_hawkeye_trl.pairs.pair_run import make_pairs
from q_hawkeye_trl.pairs.pair_settings import PairSettings

SCRIPT = Path(__file__).parents[1] / "examples" / "train_koniq.py"
TINY = ["--per_device_train_batch_size", "8", "--num_generations", "4", "--max_steps", "2", "--bf16", "false"]
TINY += ["--use_cpu", "true", "--held_out_images", "2", "--held_out_batch_size", "2", "--max_completion_length", "24"]


def test_the_script_trains_on_pairs_of_two_sets_and_on_rows_without_a_pair(tmp_path, monkeypatch):
    files = [tmp_path / f"{n}.jpg" for n in range(4)]
    for n, file in enumerate(files):
        picture(n, (112, 84)).save(file, quality=95)
    train = dataset([*files, *(picture(n, (112, 84)) for n in range(4, 8))])  # paths and embedded, spaq and koniq10k
    test = dataset([picture(n, (112, 84)) for n in range(20, 24)])
    data = save(tmp_path / "data", DatasetDict(train=train, validation=test, test=test))
    settings = {"degradations": ["jpeg@4", "gaussian_noise@3"], "splits": ["train"]}
    make_pairs(data, tmp_path / "first", PairSettings(**settings), progress=False)
    lines = read_manifest(tmp_path / "first").to_pylist()
    for line in lines[:8:2]:
        key = PairKey(line["pixel_hash"], line["degraded_pixel_hash"])
        append_decision(tmp_path / "decisions.jsonl", key, "reject")
    rejected = PairSettings(decisions=tmp_path / "decisions.jsonl")
    summary = make_pairs(tmp_path / "first", tmp_path / "pairs", rejected, progress=False)
    assert summary.verdicts == {"none": 8, "ok": 4, "rejected": 4}

    out = tmp_path / "run"
    arguments = [str(SCRIPT), "--dataset", str(tmp_path / "pairs"), "--output_dir", str(out), *TINY]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in logged if "loss" in line]
    assert len(steps) == 2
    without = [line["perception/rows_without_view"] for line in steps]
    assert (
        sum(without) == 8
    )  # 2 steps of 2 images, 4 of 8 rows without a pair: in 4 draws 0 to 4 of them, 4 rollouts each
    assert any(line["perception/kl"] > 0 for line in steps if "perception/kl" in line)
