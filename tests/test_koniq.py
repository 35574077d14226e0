import statistics
from pathlib import Path

import numpy as np
import pytest
from datasets import Image as ImageFeature
from datasets import load_from_disk
from PIL import Image

from iqa_layouts import refused, write_images, write_rows
from q_hawkeye_trl.data.koniq import SCORES_FILE, SETS_FILE, SPLITS, load_koniq
from q_hawkeye_trl.data.preparation import prepare
from q_hawkeye_trl.data.readers import READERS
from q_hawkeye_trl.data.scales import KONIQ_SCALES
from q_hawkeye_trl.text import quality_messages

# Made-up images beside KonIQ-10k's own values: rows with its smallest and largest mean (the first one also has its
# smallest score of 0 to 100), one with its largest score, and the one whose four MOS are published in our docs.
# name, counts of the answers 1 to 5, score of 0 to 100, standard deviation, split
LOWEST = ("80184044.jpg", (94, 10, 0, 0, 0), 3.91176470588, 0.29622973141, "training")
HIGHEST_MEAN = ("121123359.jpg", (0, 0, 5, 59, 36), 88.24375, 0.563090318751, "test")
HIGHEST_SCORE = ("5869585652.jpg", (0, 0, 8, 64, 33), 88.3888888889, 0.58051385599, "training")
KNOWN = ("10007357496.jpg", (0, 3, 45, 47, 1), 68.7285714286, 0.580003024795, "test")
ROWS = [
    LOWEST,
    HIGHEST_MEAN,
    HIGHEST_SCORE,
    KNOWN,
    ("a.jpg", (10, 20, 40, 20, 10), 50.5, 1.1, "validation"),
    ("b.jpg", (0, 10, 60, 30, 0), 61.25, 0.6, "training"),
]


_ANSWERS = ["image_name", "c1", "c2", "c3", "c4", "c5", "c_total", "MOS", "SD"]
COLUMNS = {SETS_FILE: [*_ANSWERS, "set"], SCORES_FILE: [*_ANSWERS, "MOS_zscore"]}


def _cells(file, row):
    name, counts, score, std, split = row
    if file == SETS_FILE:
        shares = [f"{count / sum(counts):.12g}" for count in counts]
        values = [name, *shares, sum(counts), score, std, split]
    else:
        mean = sum(k * count for k, count in enumerate(counts, 1)) / sum(counts)
        values = [name, *counts, sum(counts), f"{mean:.6f}", std, score]
    return dict(zip(COLUMNS[file], values, strict=True))


def _write(path, rows):
    write_rows(path, COLUMNS[path.name], [row.values() for row in rows])


def _koniq(folder, rows=ROWS, file=SETS_FILE, resolution="1024x768"):
    (folder / resolution).mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rows):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(folder / resolution / row[0])
    _write(folder / file, [_cells(file, row) for row in rows])
    return folder


def _all(folder, **options):
    """Every row of every split by its image."""
    return {row["image_id"]: row for split in SPLITS for row in load_koniq(folder, split, **options)}


def _reference_answers(counts):
    return [k for k, count in enumerate(counts, 1) for _ in range(count)]


# --- what is loaded ---


@pytest.mark.parametrize(
    ("scale", "mos"), [("raw", 3.479), ("deqa", 3.966), ("zscore-minmax", 4.069), ("zscore", 3.749)]
)
def test_the_four_rules_give_the_published_values(tmp_path, scale, mos):
    row = _all(_koniq(tmp_path), scale=scale)["10007357496.jpg"]
    assert row["mos"] == pytest.approx(mos, abs=5e-4)
    assert (row["mos_scale"], row["mos_direction"]) == (scale, "higher")
    assert row["mos_raw"] == pytest.approx(3.479167 if scale in ("raw", "deqa") else 68.7285714286, abs=1e-6)
    assert row["mos_std_raw"] == pytest.approx(0.580003)
    means = [statistics.fmean(_reference_answers(counts)) for _, counts, *_ in ROWS]
    points = {  # MOS that a point of the raters' scale is worth; of the z-scored rules by the ratio of both spreads
        "raw": 1,
        "deqa": 4 / (max(means) - min(means)),
        "zscore": statistics.pstdev(1 + 4 * row[2] / 100 for row in ROWS) / statistics.pstdev(means),
    }
    if scale in points:
        assert row["mos_std"] == pytest.approx(0.580003 * points[scale], rel=1e-5)


@pytest.mark.parametrize("scale", KONIQ_SCALES)
@pytest.mark.filterwarnings("ignore:.*has no split")
def test_both_official_files_give_the_same_mos(tmp_path, scale):
    by_sets = _all(_koniq(tmp_path / "a"), scale=scale)
    by_scores = _all(_koniq(tmp_path / "b", file=SCORES_FILE), scale=scale)
    assert by_sets.keys() == by_scores.keys()
    assert len(by_sets) == len(ROWS)
    for name, row in by_sets.items():
        for column in ("mos", "mos_raw", "mos_std"):
            assert by_scores[name][column] == pytest.approx(row[column], abs=1e-9)
        assert 1 <= row["mos"] <= 5


def test_rows_have_the_documented_columns(tmp_path):
    dataset = load_koniq(_koniq(tmp_path), "test")
    assert set(dataset.column_names) == {
        *("prompt", "image", "image_id", "dataset"),
        *("mos", "mos_raw", "mos_direction", "mos_scale", "mos_std", "mos_std_raw"),
    }
    assert dataset["image_id"][:] == ["121123359.jpg", "10007357496.jpg"]  # the file's order
    assert isinstance(dataset.features["image"], ImageFeature)
    row = dataset[1]
    assert row["prompt"] == quality_messages()
    assert row["dataset"] == "koniq10k"
    assert abs(row["image"].getpixel((0, 0))[0] - 3) <= 2  # its own image: the fourth that was made


def test_the_official_split_is_kept(tmp_path):
    _koniq(tmp_path, file=SCORES_FILE)
    _koniq(tmp_path)  # both files: the one with the split counts, without a warning
    (tmp_path / "1024x768" / "b.jpg").write_bytes(b"no image")  # nothing is decoded while loading
    for split in SPLITS:
        assert load_koniq(tmp_path, split)["image_id"][:] == [row[0] for row in ROWS if row[4] == split]
    labels = READERS["koniq10k"](tmp_path)
    expected = ["validation" if row[4] == "validation" else row[4].removesuffix("ing") for row in ROWS]
    assert [row.split for row in labels.rows] == expected
    assert labels.splits == "official"


def test_the_larger_images_are_preferred_and_the_smaller_ones_can_be_asked_for(tmp_path):
    def folder(resolution):
        rows = load_koniq(tmp_path, resolution=resolution).cast_column("image", ImageFeature(decode=False))
        return Path(rows[0]["image"]["path"]).parent.name

    _koniq(tmp_path, resolution="512x384")
    assert folder(None) == "512x384"
    _koniq(tmp_path)
    for resolution in (None, "1024x768", "512x384"):
        assert folder(resolution) == (resolution or "1024x768")


MANY = [
    (f"{n}.jpg", counts, 40 + n % 30, statistics.pstdev(_reference_answers(counts)), "training")
    for n in range(1, 103)
    for counts in [(n % 7, 5, 30, 40, n % 5)]
]


def _names(folder, seed):
    with pytest.warns(UserWarning, match=f"seed {seed}, which is not the official"):
        return [load_koniq(folder, split, seed=seed)["image_id"][:] for split in SPLITS]


def test_the_drawn_split_has_the_official_proportions_and_follows_the_seed_alone(tmp_path):
    _koniq(tmp_path, MANY, SCORES_FILE)
    state = np.random.get_state()[1].copy()
    names = _names(tmp_path, 0)
    assert [len(part) for part in names] == [71, 11, 20]  # 102 x 7058, 1000, 2015 / 10073, cut at rounded ends
    assert sorted(name for part in names for name in part) == sorted(row[0] for row in MANY)
    assert _names(tmp_path, 0) == names
    assert _names(tmp_path, 1) != names
    assert np.array_equal(np.random.get_state()[1], state)
    _koniq(tmp_path, MANY[::-1], SCORES_FILE)
    assert [sorted(part) for part in _names(tmp_path, 0)] == [sorted(part) for part in names]


def test_the_drawn_split_is_that_of_prepare(tmp_path):
    folder = _koniq(tmp_path / "koniq", MANY, SCORES_FILE)
    write_images(folder / "1024x768", [row[0] for row in MANY])  # no two with the same pixels
    prepare(READERS["koniq10k"](folder), tmp_path / "out", seed=3)
    prepared = load_from_disk(tmp_path / "out")
    assert [sorted(part) for part in _names(folder, 3)] == [sorted(part["image_id"]) for part in prepared.values()]


# --- what is refused ---


def test_missing_folders_and_files_are_named(tmp_path):
    refused("nowhere", load_koniq, tmp_path / "nowhere", error=FileNotFoundError)
    refused("1024x768 or 512x384", load_koniq, tmp_path, error=FileNotFoundError)
    (tmp_path / "1024x768").mkdir()
    (tmp_path / "dmos.csv").touch()
    refused(rf"{SETS_FILE} or {SCORES_FILE}.*dmos\.csv", load_koniq, tmp_path, error=FileNotFoundError)
    refused("512x384", load_koniq, _koniq(tmp_path), resolution="512x384", error=FileNotFoundError)


def test_unknown_options_are_refused(tmp_path):
    _koniq(tmp_path)
    refused("'train'.*training, validation, test", load_koniq, tmp_path, split="train")
    refused("'224x224'", load_koniq, tmp_path, resolution="224x224")
    refused("'mos'.*deqa, raw, zscore-minmax, zscore", load_koniq, tmp_path, scale="mos")


WRONG_FILES = {
    "other columns": (lambda lines: [line.replace("set", "MOS_zscore") for line in lines], r"set.*MOS_zscore"),
    "empty": (lambda lines: [], "none"),
    "header only": (lambda lines: lines[:1], "no rows"),
    "short row": (lambda lines: [*lines[:3], "5869585652.jpg,0,0"], "line 4"),
    "repeated row": (lambda lines: [*lines, lines[-1]], r"line 8 \(b\.jpg\).*line 7"),
    "not text": (lambda lines: ["\udcff\udcfe\0"], f"{SETS_FILE}.*UTF-8"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_files_that_are_not_as_published_are_refused(tmp_path, case):
    change, match = WRONG_FILES[case]
    path = _koniq(tmp_path) / SETS_FILE
    path.write_text("\n".join(change(path.read_text().splitlines())), errors="surrogateescape")
    refused(match, load_koniq, tmp_path)


def test_variances_in_place_of_standard_deviations_are_seen(tmp_path):
    _koniq(tmp_path, [(name, (50, 0, 0, 50, 0), score, 2.25, split) for name, _, score, _, split in ROWS])
    refused("`SD` is the variance of c1 to c5", READERS["koniq10k"], tmp_path)


def test_a_byte_order_mark_and_quotes_are_read(tmp_path):
    path = _koniq(tmp_path) / SETS_FILE
    quoted = "\n".join(",".join(f'"{v}"' for v in line.split(",")) for line in path.read_text().splitlines())
    path.write_text("\ufeff" + quoted, encoding="utf-8")
    assert len(load_koniq(tmp_path)) == 3


BAD_CELLS = [
    (SETS_FILE, "MOS", ("nan", "", "100.1", "-1"), "`MOS`"),
    (SETS_FILE, "SD", ("inf", "-0.1"), "`SD`"),
    (SETS_FILE, "c3", ("x", "-0.2"), "`c3`"),
    (SETS_FILE, "c3", ("0.99",), r"c1 to c5 sum to .*c_total = 100"),
    (SETS_FILE, "c_total", ("0",), "`c_total`"),
    (SETS_FILE, "set", ("train",), "`set`.*'train'"),
    (SETS_FILE, "image_name", ("", "../a.jpg"), "`image_name`"),
    (SCORES_FILE, "MOS", ("5.2",), r"`MOS`.*\[1, 5\]"),
    (SCORES_FILE, "MOS", ("4.9",), r"`MOS`.*c1 to c5.* 3\.0000"),
    (SCORES_FILE, "MOS_zscore", ("nan", "101"), "`MOS_zscore`"),
    (SCORES_FILE, "c2", ("21",), r"c1 to c5 sum to 101.*c_total = 100"),
]


@pytest.mark.parametrize(("file", "column", "values", "message"), BAD_CELLS)
def test_a_bad_cell_is_named_by_line_and_column(tmp_path, file, column, values, message):
    _koniq(tmp_path, file=file)
    for value in values:
        rows = [_cells(file, row) for row in ROWS]
        rows[4][column] = value
        _write(tmp_path / file, rows)
        refused(rf"line 6.*{message}", load_koniq, tmp_path)


def test_missing_images_stop_unless_as_many_are_allowed(tmp_path):
    folder = _koniq(tmp_path)
    whole = load_koniq(folder)["mos"][:]
    for name in ("b.jpg", "80184044.jpg"):
        (folder / "1024x768" / name).unlink()
    match = r"2 of the split's 3.*80184044\.jpg, b\.jpg.*allow_missing=2"
    for allowed in (0, 1):
        refused(match, load_koniq, folder, allow_missing=allowed, error=FileNotFoundError)
    with pytest.warns(UserWarning, match="2 of the split's 3"):
        kept = load_koniq(folder, allow_missing=2)
    assert kept["image_id"][:] == ["5869585652.jpg"]
    assert kept["mos"][:] == whole[1:2]  # minimum and maximum are those of the file
    assert len(load_koniq(folder, "test")) == 2  # other splits are whole
    (folder / "1024x768" / "a.jpg").unlink()
    refused("no images", load_koniq, folder, "validation", allow_missing=1)
