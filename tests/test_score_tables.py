"""Tables of scored images: every column read, every defect named with its row."""

import csv
import json
import math

import numpy as np
import pytest

from q_hawkeye_trl.evaluation.score_tables import read_tables

ROWS = [
    {"image_id": "b.png", "score": 2.5, "mos": 2.0, "spread": 0.5, "group": "r1", "distortion": "blur"},
    {"image_id": "a.png", "score": None, "mos": 4.0, "spread": None, "group": "r1", "distortion": "noise"},
    {"image_id": "c.png", "score": 4.25, "mos": 5.0, "spread": 0.0, "group": "r2", "distortion": "blur"},
]


def write(path, rows):
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["set.csv", "set.jsonl"])
def test_both_formats_give_the_same_table(tmp_path, name):
    (table,) = read_tables(write(tmp_path / name, ROWS))
    assert table.name == "set"
    assert table.image_id == ("a.png", "b.png", "c.png")  # sorted
    np.testing.assert_array_equal(table.score, [math.nan, 2.5, 4.25])
    np.testing.assert_array_equal(table.mos, [4, 2, 5])
    np.testing.assert_array_equal(table.spread, [math.nan, 0.5, 0])
    assert table.group == ("r1", "r1", "r2")
    assert table.distortion == ("noise", "blur", "blur")
    assert table.mos_raw is None
    assert table.image is None
    part = table.select(np.array([False, True, True]))
    assert (part.image_id, part.group, part.score.tolist()) == (("b.png", "c.png"), ("r1", "r2"), [2.5, 4.25])


@pytest.mark.parametrize("missing", ["", "nan", "NaN", " ", "inf", "1e999", "1e308", "-1e308", "123456789"])
def test_scores_that_are_not_finite_or_absurd_are_missing(tmp_path, missing):
    path = tmp_path / "set.csv"
    path.write_text(f"image_id,score,mos\na,{missing},3\nb,2,4\n")
    (table,) = read_tables(path)
    np.testing.assert_array_equal(table.score, [math.nan, 2])
    assert table.out_of_range == 0


def test_json_scores_that_are_missing(tmp_path):
    scores = {"7": "NaN", '"b"': "null", '"c"': "1" + "0" * 400}  # an integer beyond floats
    lines = [f'{{"image_id": {name}, "score": {score}, "mos": "4"}}\n\n' for name, score in scores.items()]
    (tmp_path / "set.jsonl").write_text("\ufeff" + "".join(lines))
    (table,) = read_tables(tmp_path / "set.jsonl")
    assert table.image_id == ("7", "b", "c")
    assert np.isnan(table.score).all()


def test_a_dataset_column_makes_sets(tmp_path):
    rows = [{"image_id": "a", "score": 1, "mos": 1, "dataset": name} for name in ("kadid10k", "csiq")]
    tables = read_tables(write(tmp_path / "all.csv", rows))
    assert [table.name for table in tables] == ["kadid10k", "csiq"]


def test_other_scales_are_mapped_onto_1_to_5(tmp_path):
    rows = [
        {"image_id": "a", "score": 0, "mos": 1.0, "spread": 10},
        {"image_id": "b", "score": 100, "mos": 0.25, "spread": 25},
        {"image_id": "c", "score": 75, "mos": 0, "spread": 0},
    ]
    path = write(tmp_path / "set.csv", rows)
    (table,) = read_tables(path, score_range=(0, 100), mos_range=(1, 0))  # a DMOS: lower is better
    assert table.score.tolist() == [1, 5, 4]
    assert table.mos.tolist() == [1, 4, 5]
    assert table.spread.tolist() == pytest.approx([0.4, 1.0, 0.0])


def test_scores_out_of_range_stay_and_are_counted(tmp_path):
    rows = [{"image_id": f"{i:02}", "score": 3, "mos": 3} for i in range(20)]
    rows[3]["score"], rows[7]["score"] = 5.5, -40
    (table,) = read_tables(write(tmp_path / "set.csv", rows))
    assert table.out_of_range == 2
    assert (table.score[3], table.score[7]) == (5.5, -40)
    for row in rows[8:17]:
        row["score"] = 77
    with pytest.raises(ValueError, match=r"11 of 20 .*`score`.*\[1, 5\].*--score-range"):
        read_tables(write(tmp_path / "set.csv", rows))


def test_rounding_at_the_ends_is_no_error(tmp_path):
    rows = [{"image_id": i, "score": 3, "mos": mos} for i, mos in enumerate((0.1 + 0.2, 0.3, 0.0))]
    (table,) = read_tables(write(tmp_path / "set.csv", rows), mos_range=(0, 0.3))
    assert table.mos.tolist() == [5, 5, 1]


def test_raw_labels_and_their_direction(tmp_path):
    rows = [
        {**row, "mos_raw": value, "mos_direction": "lower"} for row, value in zip(ROWS, (0.7, 0.2, 0.1), strict=True)
    ]
    (table,) = read_tables(write(tmp_path / "set.csv", rows))
    assert table.mos_raw.tolist() == [-0.2, -0.7, -0.1]
    rows[1]["mos_direction"] = "sideways"
    with pytest.raises(ValueError, match="mos_direction"):
        read_tables(write(tmp_path / "set.csv", rows))


HEAD = "image_id,score,mos"
DEFECTS = {
    "no column": ("set.csv", "image_id,score\na,1\n", r"set\.csv, line 2: .*`mos`"),
    "no rows": ("set.csv", f"{HEAD}\n", r"set\.csv"),
    "text score": ("set.csv", f"{HEAD}\na,<b>good</b>,1\n", r"line 2: `score`.*<b>good"),
    "true score": ("set.jsonl", '{"image_id": "a", "score": true, "mos": 1}\n', "line 1: `score`.*True"),
    "no mos": ("set.csv", f"{HEAD}\na,1,\n", r"line 2: `mos`"),
    "nan mos": ("set.csv", f"{HEAD}\na,1,nan\n", r"line 2: `mos`.*nan"),
    "mos out of scale": ("set.csv", f"{HEAD}\na,1,73\n", r"1 of 1 .*`mos`.*--mos-range"),
    "duplicate": ("set.csv", f"{HEAD}\na,1,2\nb,1,2\na,2,2\n", r"line 4: image_id 'a' .*line 2"),
    "short row": ("set.csv", f"{HEAD}\na,1\n", r"line 2: .* 3 values"),
    "long row": ("set.csv", f"{HEAD}\na,1,2,3\n", r"line 2: .* 3 values"),
    "not json": ("set.jsonl", '{"image_id": "a", "score": 1, "mos": 1}\n{"ima\n', r"line 2 .*JSON"),
    "a list": ("set.jsonl", "[1]\n", "line 1: .*object.* list"),
    "half a group": ("set.csv", f"{HEAD},group\na,1,2,r\nb,1,2,\n", r"line 3: `group`"),
    "negative spread": ("set.csv", f"{HEAD},spread\na,1,2,-1\n", r"line 2: `spread`.*-1"),
    "other separator": ("set.csv", "image_id;score;mos\na;1;2\n", "`image_id`.*image_id;score;mos.*commas"),
    "column twice": ("set.csv", f"{HEAD},score\na,1,2,3\n", "line 1: .*column score"),
    "no name": ("set.csv", f"{HEAD}\n,1,2\n", "line 2: `image_id`"),
    "null name": ("set.jsonl", '{"image_id": null, "score": 1, "mos": 1}\n', "line 1: `image_id`"),
    "underscore": ("set.csv", f"{HEAD}\na,3_0,2\n", "line 2: `score`.*3_0"),
    "endless field": ("set.csv", f"{HEAD}\na,1,{'2' * 140_000}\n", "line 1: .*CSV.*field larger"),
    "endless mos": ("set.jsonl", f'{{"image_id": 1, "score": 1, "mos": 1{"0" * 400}}}\n', "line 1: `mos`"),
    "unknown format": ("set.xlsx", "", r"set\.xlsx: .*\.csv or \.jsonl"),
}


@pytest.mark.parametrize(("name", "text", "message"), DEFECTS.values(), ids=DEFECTS.keys())
def test_defects_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_tables(tmp_path / name)


def test_other_encodings_and_endings(tmp_path):
    text = "image_id,score,mos\r\né,1,2\r\n"
    (tmp_path / "SET.CSV").write_bytes(text.encode("utf-8-sig"))
    (table,) = read_tables(tmp_path / "SET.CSV")
    assert (table.image_id, table.score.tolist()) == (("é",), [1.0])
    for encoding in ("utf-16", "latin-1"):
        (tmp_path / "set.csv").write_bytes(text.encode(encoding))
        with pytest.raises(ValueError, match=r"set\.csv .*UTF-8"):
            read_tables(tmp_path / "set.csv")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.csv"):
        read_tables(tmp_path / "nothing.csv")


@pytest.mark.parametrize("ends", [(1, 1), (1, math.nan)])
def test_a_range_needs_two_numbers(tmp_path, ends):
    with pytest.raises(ValueError, match=r"`score`.*1"):
        read_tables(write(tmp_path / "set.csv", ROWS), score_range=ends)
