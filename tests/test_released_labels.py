"""The real label files in the sets' official layouts: counts, ranges and directions as published."""

import csv
import math
import os
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from datasets import load_from_disk
from scipy.stats import spearmanr

from iqa_layouts import (
    csiq_image,
    livec_image,
    write_csiq,
    write_images,
    write_kadid,
    write_livec,
    write_pipal,
    write_rows,
    write_spaq,
    write_tid,
)
from q_hawkeye_trl.data.koniq import SCORES_FILE, SETS_FILE
from q_hawkeye_trl.data.preparation import prepare
from q_hawkeye_trl.data.readers import READERS

LABELS = Path(os.environ.get("Q_HAWKEYE_LABELS", ""))
pytestmark = pytest.mark.skipif(
    "Q_HAWKEYE_LABELS" not in os.environ, reason="Q_HAWKEYE_LABELS names no folder of real label files"
)


def _csv(name):
    with (LABELS / f"{name}.csv").open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def _koniq10k(root):
    (root / "512x384").mkdir(parents=True)
    shutil.copy(LABELS / "koniq10k" / SETS_FILE, root)
    return "512x384", [row["image_name"] for row in _csv(f"koniq10k/{Path(SETS_FILE).stem}")], (512, 384)


def _spaq(root):
    with (LABELS / "SPAQ.csv").open(newline="") as file:
        rows = [(row[0], float(row[1])) for row in list(csv.reader(file))[1:]]
    write_spaq(root, rows)
    return "TestImage", [name for name, _ in rows], (540, 405)


def _rows(table, *columns):
    return [tuple(row[c] if c.endswith("name") else float(row[c]) for c in columns) for row in _csv(table)]


def _kadid10k(root):
    # The gathered table calls `std` what the official file calls `var`.
    rows = _rows("KADID10k", "dist_name", "ref_name", "dmos", "std")
    write_kadid(root, rows)
    return "images", [row[0] for row in rows], (512, 384)


def _pipal(root):
    rows = _rows("PIPAL", "dist_name", "elo_score")
    write_pipal(root, rows)
    return "Train_Dist", [name for name, _ in rows], (288, 288)


def _livec(root):
    rows = _rows("LIVEChallenge", "img_name", "mos", "std")
    write_livec(root, rows)
    return "Images", [livec_image(name) for name, _, _ in rows], (500, 500)


def _csiq(root):
    rows = [(*row, 0.1) for row in _rows("CSIQ", "dist_name", "dmos")]  # the table has no std
    write_csiq(root, rows)
    return "dst_imgs", [csiq_image(name) for name, _, _ in rows], (512, 512)


def _tid2013(root):
    rows = _rows("TID2013", "dist_name", "mos", "std")
    write_tid(root, rows)
    return "distorted_images", [name for name, _, _ in rows], (512, 384)


BUILD = {
    "koniq10k": _koniq10k,
    "spaq": _spaq,
    "kadid10k": _kadid10k,
    "pipal": _pipal,
    "livec": _livec,
    "csiq": _csiq,
    "tid2013": _tid2013,
}
# images, references, lowest and highest released score
PUBLISHED = {
    "koniq10k": (10_073, 0, 1.0962, 4.31),
    "spaq": (11_125, 0, 2, 96),
    "kadid10k": (10_125, 81, 1, 4.93),
    "pipal": (23_200, 200, 916.7136, 1835.9856),
    "livec": (1_162, 0, 3.42, 92.432),
    "csiq": (866, 30, 0, 1),
    "tid2013": (3_000, 25, 0.24242, 7.21429),
}


@pytest.mark.parametrize("name", BUILD)
def test_counts_and_ranges_are_the_published_ones(name, tmp_path):
    BUILD[name](tmp_path)
    labels = READERS[name](tmp_path)
    scores = [row.score for row in labels.rows]
    count, references, low, high = PUBLISHED[name]
    assert len(labels.rows) == len({row.image_id for row in labels.rows}) == count
    assert len({row.reference for row in labels.rows} - {None}) == references
    assert min(scores) == pytest.approx(low, abs=5e-5)
    assert max(scores) == pytest.approx(high, abs=5e-4)
    assert labels.mos.min() == 1
    assert labels.mos.max() == 5
    assert spearmanr(scores, labels.mos).statistic == pytest.approx(-1 if name == "csiq" else 1)
    if labels.levels is not None:
        assert spearmanr(labels.levels, labels.mos).statistic < -0.5  # stronger distortions, lower MOS


def test_koniq_has_its_official_split_and_both_files_give_the_same_mos(tmp_path):
    _koniq10k(tmp_path / "a")
    first = READERS["koniq10k"](tmp_path / "a")
    splits = [row.split for row in first.rows]
    assert [splits.count(split) for split in ("train", "validation", "test")] == [7058, 1000, 2015]
    rows = []
    for row in _csv(f"koniq10k/{Path(SETS_FILE).stem}"):
        counts = [round(float(row[f"c{k}"]) * float(row["c_total"])) for k in range(1, 6)]
        mean = sum(k * count for k, count in enumerate(counts, 1)) / sum(counts)
        rows.append([row["image_name"], *counts, sum(counts), mean, row["SD"], row["MOS"]])
    (tmp_path / "b" / "512x384").mkdir(parents=True)
    header = ["image_name", "c1", "c2", "c3", "c4", "c5", "c_total", "MOS", "SD", "MOS_zscore"]
    write_rows(tmp_path / "b" / SCORES_FILE, header, rows)
    second = READERS["koniq10k"](tmp_path / "b")
    assert np.abs(first.mos - second.mos).max() < 1e-6
    assert second.rows[0].split is None


def test_kadid_s_var_holds_standard_deviations(tmp_path):
    """Thirty whole-number answers have a whole sum of squares: a plain loop over the first thousand images."""
    rows = _csv("KADID10k")[:1000]
    fits = {"std": 0, "variance": 0}
    for row in rows:
        mean, value = float(row["dmos"]), float(row["std"])
        total = round(30 * mean)
        for reading, low, high in (
            ("std", (value - 0.0005) ** 2, (value + 0.0005) ** 2),
            ("variance", value - 0.0005, value + 0.0005),
        ):
            squares = [30 * variance + total**2 / 30 for variance in (low, high)]
            whole = range(math.ceil(squares[0]), math.floor(squares[1]) + 1)
            fits[reading] += any((square - total) % 2 == 0 for square in whole)
    assert fits["std"] > 950
    assert fits["variance"] < 50
    _kadid10k(tmp_path)
    labels = READERS["kadid10k"](tmp_path)
    assert "read as a standard deviation" in labels.notes[0]
    assert labels.rows[0].std == 0.496


def test_the_four_rules_of_koniq_differ_as_known(tmp_path):
    _koniq10k(tmp_path)
    found = {}
    for scale in ("raw", "deqa", "zscore-minmax", "zscore"):
        labels = READERS["koniq10k"](tmp_path, scale=scale)
        names = [row.image_id for row in labels.rows]
        found[scale] = labels.mos[names.index("10007357496.jpg")]
    assert found == pytest.approx({"raw": 3.479, "deqa": 3.966, "zscore-minmax": 4.069, "zscore": 3.749}, abs=5e-4)


SPLITS = {"koniq10k": [7058, 1000, 2015], "spaq": [7787, 1113, 2225], "kadid10k": [7125, 1000, 2000]}


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILD)
def test_whole_sets_with_images_of_the_right_names_and_sizes(name, tmp_path):
    root = tmp_path / name
    folder, images, size = BUILD[name](root)
    write_images(root / folder, images, size)
    result = prepare(READERS[name](root), tmp_path / "out", workers=2)
    data = load_from_disk(tmp_path / "out")
    sizes = [len(data[split]) for split in ("train", "validation", "test")]
    count, references, _, _ = PUBLISHED[name]
    assert sum(sizes) == count
    assert sizes == SPLITS.get(name, sizes)
    assert abs(sizes[0] / count - 0.7) < 0.03
    assert not result.faults
    splits = defaultdict(set)
    for split, part in data.items():
        for reference in part["reference"]:
            splits[reference].add(split)
    assert len(set(splits) - {None}) == references
    assert all(len(found) == 1 for reference, found in splits.items() if reference is not None)
    assert data["test"][0]["image"].size == size
    assert all(1 <= mos <= 5 for part in data.values() for mos in part["mos"])
