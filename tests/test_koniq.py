import csv
import statistics

import numpy as np
import pytest
from datasets import Image as ImageFeature
from datasets import load_from_disk
from PIL import Image

from iqa_layouts import refused, write_images
from q_hawkeye_trl.data.koniq import SCORES_FILE, SETS_FILE, SPLITS, load_koniq, read_koniq_labels
from q_hawkeye_trl.data.preparation import prepare
from q_hawkeye_trl.data.readers import READERS
from q_hawkeye_trl.data.scales import KONIQ_SCALES, mean_opinion, min_max
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


def _sets_row(row):
    name, counts, score, std, split = row
    shares = [f"{count / sum(counts):.12g}" for count in counts]
    return dict(zip(SETS_COLUMNS, [name, *shares, sum(counts), score, std, split], strict=True))


def _scores_row(row):
    name, counts, score, std, _ = row
    mean = sum(k * count for k, count in enumerate(counts, 1)) / sum(counts)
    return dict(zip(SCORES_COLUMNS, [name, *counts, sum(counts), f"{mean:.6f}", std, score], strict=True))


SETS_COLUMNS = ["image_name", "c1", "c2", "c3", "c4", "c5", "c_total", "MOS", "SD", "set"]
SCORES_COLUMNS = ["image_name", "c1", "c2", "c3", "c4", "c5", "c_total", "MOS", "SD", "MOS_zscore"]


def _write(path, columns, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _koniq(folder, rows=ROWS, scores=False, resolution="1024x768"):
    folder.mkdir(exist_ok=True)
    (folder / resolution).mkdir(exist_ok=True)
    for number, row in enumerate(rows):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(folder / resolution / row[0])
    if scores:
        _write(folder / SCORES_FILE, SCORES_COLUMNS, map(_scores_row, rows))
    else:
        _write(folder / SETS_FILE, SETS_COLUMNS, map(_sets_row, rows))
    return folder


def _all(folder, **options):
    """Every row of every split by its image."""
    return {row["image_id"]: row for split in SPLITS for row in load_koniq(folder, split, **options)}


# --- scales ---


def _reference_std(counts):
    return statistics.pstdev([k for k, count in enumerate(counts, 1) for _ in range(count)])


def _reference_mean(counts):
    answers = [k for k, count in enumerate(counts, 1) for _ in range(count)]
    return sum(answers) / len(answers)


def test_mean_opinion_equals_the_mean_of_the_answers():
    counts = [row[1] for row in ROWS]
    expected = [_reference_mean(row) for row in counts]
    assert mean_opinion(np.array(counts)) == pytest.approx(expected, abs=1e-12)
    shares = np.array([[count / sum(row) for count in row] for row in counts])
    assert mean_opinion(shares) == pytest.approx(expected, abs=1e-12)


def test_mean_opinion_of_unanimous_answers_stays_in_range():
    shares = np.eye(5) * np.array([[0.999999999999], [1.0], [1.0], [1.0], [1.000000000001]])
    assert mean_opinion(shares).tolist() == pytest.approx([1, 2, 3, 4, 5])
    assert mean_opinion(shares).min() >= 1
    assert mean_opinion(shares).max() <= 5


def test_min_max_hits_both_ends_exactly_and_keeps_order():
    values = np.random.default_rng(0).normal(40, 13, 500)
    scaled = min_max(values)
    assert scaled.min() == 1
    assert scaled.max() == 5
    assert np.array_equal(np.argsort(values), np.argsort(scaled))


def test_min_max_needs_two_values():
    for values in ([3.0, 3.0], [2.0]):
        refused("two", min_max, np.array(values))


# --- what is loaded ---


@pytest.mark.parametrize(
    ("scale", "mos"), [("raw", 3.479), ("deqa", 3.966), ("zscore-minmax", 4.069), ("zscore", 3.749)]
)
def test_the_four_rules_give_the_published_values(tmp_path, scale, mos):
    row = _all(_koniq(tmp_path), scale=scale)["10007357496.jpg"]
    assert row["mos"] == pytest.approx(mos, abs=5e-4)
    assert row["mos_scale"] == scale
    assert row["mos_direction"] == "higher"
    assert row["mos_raw"] == pytest.approx(3.479167 if scale in ("raw", "deqa") else 68.7285714286, abs=1e-6)
    assert row["mos_std_raw"] == pytest.approx(0.580003)
    means = [_reference_mean(counts) for _, counts, *_ in ROWS]
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
    sets, scores = _koniq(tmp_path / "a"), _koniq(tmp_path / "b", scores=True)
    by_sets, by_scores = _all(sets, scale=scale), _all(scores, scale=scale)
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


def test_images_are_not_decoded_while_loading(tmp_path):
    (_koniq(tmp_path) / "1024x768" / "b.jpg").write_bytes(b"no image")
    assert len(load_koniq(tmp_path, "training")) == 3


def test_the_official_split_is_kept(tmp_path):
    _koniq(tmp_path, scores=True)
    _koniq(tmp_path)  # both files: the one with the split counts, without a warning
    for split in SPLITS:
        assert load_koniq(tmp_path, split)["image_id"][:] == [row[0] for row in ROWS if row[4] == split]


def test_the_larger_images_are_preferred_and_the_smaller_ones_can_be_asked_for(tmp_path):
    small = _koniq(tmp_path, resolution="512x384")
    assert "512x384" in load_koniq(small).cast_column("image", ImageFeature(decode=False))[0]["image"]["path"]
    _koniq(tmp_path)
    for resolution, expected in ((None, "1024x768"), ("1024x768", "1024x768"), ("512x384", "512x384")):
        rows = load_koniq(tmp_path, resolution=resolution).cast_column("image", ImageFeature(decode=False))
        assert expected in rows[0]["image"]["path"]


MANY = [
    (f"{n}.jpg", (n % 7, 5, 30, 40, n % 5), 40 + n % 30, _reference_std((n % 7, 5, 30, 40, n % 5)), "training")
    for n in range(1, 103)
]


@pytest.fixture
def many(tmp_path):
    return _koniq(tmp_path, MANY, scores=True)


def _names(folder, seed):
    with pytest.warns(UserWarning, match=f"seed {seed}, which is not the official"):
        return [load_koniq(folder, split, seed=seed)["image_id"][:] for split in SPLITS]


def test_the_drawn_split_has_the_official_proportions_and_no_overlap(many):
    names = _names(many, 0)
    assert [len(part) for part in names] == [71, 11, 20]  # 102 x 7058, 1000, 2015 / 10073, cut at rounded ends
    assert sorted(name for part in names for name in part) == sorted(row[0] for row in MANY)


def test_the_drawn_split_follows_the_seed_and_not_the_order_of_the_file(many):
    names, other = _names(many, 0), _names(many, 1)
    state = np.random.get_state()[1].copy()
    assert _names(many, 0) == names
    assert other != names
    assert np.array_equal(np.random.get_state()[1], state)
    _write(many / SCORES_FILE, SCORES_COLUMNS, map(_scores_row, MANY[::-1]))
    assert [sorted(part) for part in _names(many, 0)] == [sorted(part) for part in names]


def test_the_drawn_split_is_that_of_prepare(tmp_path):
    folder = _koniq(tmp_path / "koniq", MANY, scores=True)
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


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"split": "train"}, "'train'.*training, validation, test"),
        ({"resolution": "224x224"}, "'224x224'"),
        ({"scale": "mos"}, "'mos'.*deqa, raw, zscore-minmax, zscore"),
    ],
)
def test_unknown_options_are_refused(tmp_path, options, match):
    refused(match, load_koniq, _koniq(tmp_path), **options)


def _lines(path):
    return path.read_text().splitlines()


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
    path.write_text("\n".join(change(_lines(path))), errors="surrogateescape")
    refused(match, load_koniq, tmp_path)


def test_label_files_are_recognised_by_name(tmp_path):
    refused(f"{SETS_FILE} or {SCORES_FILE}", read_koniq_labels, tmp_path / "labels.csv")


def test_a_byte_order_mark_and_quotes_are_read(tmp_path):
    _koniq(tmp_path)
    quoted = "\n".join(",".join(f'"{v}"' for v in line.split(",")) for line in _lines(tmp_path / SETS_FILE))
    (tmp_path / SETS_FILE).write_text("\ufeff" + quoted, encoding="utf-8")
    assert len(load_koniq(tmp_path)) == 3


BAD_CELLS = [
    (False, "MOS", "nan", "`MOS`"),
    (False, "MOS", "", "`MOS`"),
    (False, "MOS", "100.1", "`MOS`"),
    (False, "MOS", "-1", "`MOS`"),
    (False, "SD", "inf", "`SD`"),
    (False, "SD", "-0.1", "`SD`"),
    (False, "c3", "x", "`c3`"),
    (False, "c3", "-0.2", "`c3`"),
    (False, "c3", "0.99", r"c1 to c5 sum to .*c_total = 100"),
    (False, "c_total", "0", "`c_total`"),
    (False, "set", "train", "`set`.*'train'"),
    (False, "image_name", "", "`image_name`"),
    (False, "image_name", "../a.jpg", "`image_name`.*'../a.jpg'"),
    (True, "MOS", "5.2", r"`MOS`.*\[1, 5\]"),
    (True, "MOS", "4.9", r"`MOS`.*c1 to c5.* 3\.0000"),
    (True, "MOS_zscore", "nan", "`MOS_zscore`"),
    (True, "MOS_zscore", "101", "`MOS_zscore`"),
    (True, "c2", "21", r"c1 to c5 sum to 101.*c_total = 100"),
]


@pytest.mark.parametrize(("scores", "column", "value", "message"), BAD_CELLS)
def test_a_bad_cell_is_named_by_line_and_column(tmp_path, scores, column, value, message):
    _koniq(tmp_path, scores=scores)
    columns, make = (SCORES_COLUMNS, _scores_row) if scores else (SETS_COLUMNS, _sets_row)
    rows = [make(row) for row in ROWS]
    rows[4][column] = value
    _write(tmp_path / (SCORES_FILE if scores else SETS_FILE), columns, rows)
    refused(rf"line 6.*{message}", load_koniq, tmp_path)


def test_missing_images_stop_unless_as_many_are_allowed(tmp_path):
    folder = _koniq(tmp_path)
    for name in ("b.jpg", "80184044.jpg"):
        (folder / "1024x768" / name).unlink()
    for allowed in (0, 1):
        with pytest.raises(FileNotFoundError, match=r"2 of the split's 3.*80184044\.jpg, b\.jpg.*allow_missing=2"):
            load_koniq(folder, allow_missing=allowed)
    with pytest.warns(UserWarning, match="2 of the split's 3"):
        assert load_koniq(folder, allow_missing=2)["image_id"][:] == ["5869585652.jpg"]
    assert len(load_koniq(folder, "test")) == 2  # other splits are whole


def test_minimum_and_maximum_are_those_of_the_file_even_when_images_are_missing(tmp_path):
    folder = _koniq(tmp_path)
    expected = load_koniq(folder)["mos"][:]
    (folder / "1024x768" / "80184044.jpg").unlink()
    with pytest.warns(UserWarning, match="1 of the split"):
        assert load_koniq(folder, allow_missing=5)["mos"][:] == expected[1:]


def test_a_split_of_which_nothing_is_left_is_refused(tmp_path):
    folder = _koniq(tmp_path)
    (folder / "1024x768" / "a.jpg").unlink()
    refused("no images", load_koniq, folder, "validation", allow_missing=1)
