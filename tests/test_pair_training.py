"""Training on a folder of pairs: two sets, and rows without a pair."""

import json

from datasets import DatasetDict

from pair_sets import dataset, lines_of, make, picture, save, saved
from q_hawkeye_trl.pairs.decisions import append_decision
from q_hawkeye_trl.pairs.pair_manifest import PairKey
from q_hawkeye_trl.train.arguments import parse_arguments
from q_hawkeye_trl.train.command import train

TINY = ["--per_device_train_batch_size", "8", "--num_generations", "4", "--max_steps", "2", "--bf16", "false"]
TINY += ["--use_cpu", "true", "--held_out_images", "2", "--held_out_batch_size", "2", "--max_completion_length", "24"]


def test_training_on_pairs_of_two_sets_and_on_rows_without_a_pair(tmp_path):
    size = (112, 84)
    training = dataset([*saved(tmp_path / "images", range(4), size), *(picture(n, size) for n in range(4, 8))])
    test = dataset([picture(n, size) for n in range(20, 24)])
    data = save(tmp_path / "data", DatasetDict(train=training, validation=test, test=test))
    make(data, tmp_path / "first", degradations=["jpeg@4", "gaussian_noise@3"], splits=["train"])
    for line in lines_of(tmp_path / "first")[:8:2]:
        append_decision(tmp_path / "decisions.jsonl", PairKey.of(line), "reject")
    summary = make(tmp_path / "first", tmp_path / "pairs", decisions=tmp_path / "decisions.jsonl")
    assert summary.verdicts == {"none": 8, "ok": 4, "rejected": 4}

    out = tmp_path / "run"
    train(parse_arguments(["--dataset", str(tmp_path / "pairs"), "--output_dir", str(out), *TINY]))
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in logged if "loss" in line]
    assert len(steps) == 2
    # 2 steps of 2 images with 4 rollouts each; of the 4 images drawn from 8, 2 had no pair
    assert sum(line["perception/rows_without_view"] for line in steps) == 8
    assert any(line["perception/kl"] > 0 for line in steps if "perception/kl" in line)
