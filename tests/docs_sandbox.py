"""Folders with everything that the commands of a docs page read, small."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, get_peft_model
from PIL import Image

from doctor_plans import saved_splits, three_splits
from iqa_layouts import write_images, write_metas, write_rows
from iqa_sets import SETS
from pair_sets import dataset, picture, save
from q_hawkeye_trl.demo.policy import demo_policy_path
from q_hawkeye_trl.demo.synthetic import content_seed, draw_sample, write_synthetic_koniq
from q_hawkeye_trl.scoring.policy import load_policy

ROOT = Path(__file__).parents[1]


def build_sandbox(page: str, folder: Path) -> None:
    """Create a working directory for a page's commands: of a checkout, with the data and models that they name."""
    for name in ("recipes", "examples", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    write_synthetic_koniq(folder / "small", train=16, validation=4, test=8, progress=False)
    BUILDERS.get(page, lambda folder: None)(folder)


def _raw_sets(folder: Path) -> None:
    """Every released set in its layout; images of different sets differ."""
    data = folder / "data"
    for name, (build, _, _) in SETS.items():
        if name not in ("deqa", "table"):
            build(data / name)
    write_images(
        data / "kadid10k/images", sorted(path.name for path in (data / "kadid10k/images").iterdir()), first=3000
    )
    SETS["spaq"][0](data / "spaq-incomplete")
    for name in ("00002.jpg", "00005.jpg"):
        (data / "spaq-incomplete/TestImage" / name).unlink()
    rows = [{"image": f"KONIQ/images/{n}.jpg", "gt_score": 2.0 + n, "gt_score_norm": 1.5 + n} for n in range(3)]
    write_metas(data / "KONIQ/metas/train_koniq_7k.json", rows[:2])
    write_metas(data / "KONIQ/metas/test_koniq_2k.json", rows[2:])
    write_images(data, [row["image"] for row in rows])
    write_rows(data / "mine/scores.csv", ["file", "score"], [(f"{n}.png", n * 10) for n in range(9)])
    write_images(data / "mine", [f"{n}.png" for n in range(9)])


def _scores(folder: Path) -> None:
    """Tables of scores on 1 to 5, and on 0 to 100 with a DMOS; a set with references and a model."""
    quality = np.random.default_rng(1).uniform(1, 5, size=60)
    for seed, name in enumerate(("scores", "other", "percent"), 2):
        score = np.clip(quality + 0.4 * np.random.default_rng(seed).normal(size=60), 1, 5)
        table = pd.DataFrame({"image_id": range(60), "score": score, "mos": quality})
        if name == "percent":
            table = table.assign(score=25 * (score - 1), mos=1 - (quality - 1) / 4)
        table.round(4).to_csv(folder / f"{name}.csv", index=False)
    rows = []
    for index in range(9):
        sample = draw_sample(content_seed("test", 4, index))
        reference = f"I0{index // 3 + 1}"
        row = {"image": Image.fromarray(sample.picture), "image_id": f"{reference}_0{index % 3 + 1}_01.png"}
        row |= {"reference": f"{reference}.png", "dataset": "kadid10k"}
        rows.append(row | {"mos": sample.quality, "mos_raw": sample.quality})
    DatasetDict({"test": Dataset.from_list(rows)}).save_to_disk(folder / "data/kadid10k")
    _model(folder)


def _model(folder: Path) -> None:
    shutil.copytree(demo_policy_path(), folder / "runs/koniq")


def _pictures(folder: Path) -> None:
    (folder / "pictures").mkdir()
    for index, name in enumerate(("a.jpg", "b.png", "c.png")):
        Image.fromarray(draw_sample(content_seed("test", 0, index)).picture).save(folder / "pictures" / name)


def _scoring(folder: Path) -> None:
    _pictures(folder)
    saved_splits(folder / "data", **three_splits())
    _model(folder)
    model, processor = load_policy(folder / "runs/koniq")
    torch.manual_seed(0)
    adapter = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapter.save_pretrained(folder / "runs/lora")
    processor.save_pretrained(folder / "runs/lora")


def _prepared_koniq(folder: Path) -> None:
    rows = {"train": dataset([picture(n, (112, 84)) for n in range(4)]), "test": dataset([picture(9, (112, 84))])}
    save(folder / "data/koniq10k", DatasetDict(rows))


def _readme(folder: Path) -> None:
    write_synthetic_koniq(folder / "PATH/koniq10k", train=6, validation=2, test=4, progress=False)
    _pictures(folder)
    _model(folder)


BUILDERS: dict[str, Callable[[Path], object]] = {
    "README.md": _readme,
    "data.md": _raw_sets,
    "doctor.md": lambda folder: saved_splits(folder / "data", **three_splits()),
    "evaluation.md": _scores,
    "pairs.md": _prepared_koniq,
    "scoring.md": _scoring,
}


def review_pairs(folder: Path) -> None:
    """Leave what a person does who rejects the first pair on the review page."""
    from q_hawkeye_trl.pairs.decisions import PairKey, append_decision
    from q_hawkeye_trl.pairs.pair_manifest import read_manifest

    first = read_manifest(folder).to_pylist()[0]
    append_decision(folder / "decisions.jsonl", PairKey(first["pixel_hash"], first["degraded_pixel_hash"]), "reject")
