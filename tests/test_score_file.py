"""The output file in its three formats reads back to the same lines."""

import csv
import json

import pyarrow.parquet as pq
import pytest

from q_hawkeye_trl.scoring.score_file import write_table
from q_hawkeye_trl.scoring.scored import ScoredImage, score_answers

FIELDS = ["image", "score", "spread", "parse_rate", "rollouts", "clamped", "error"]
SCORED = [
    score_answers('a, "b"\n<i>.png', ["<think>dark, “odd”</think><answer>2.5</answer>", "<answer>9</answer>", "?"]),
    score_answers("unparsed.png", ["<answer>nan</answer>"]),
    ScoredImage("broken.png", error="broken.png is not a readable image"),
]
ROWS = [
    [SCORED[0].image, 3.75, 1.25, 2 / 3, [2.5, 9.0, None], 1, None],
    ["unparsed.png", None, None, 0.0, [None], 0, None],
    ["broken.png", None, None, None, [], 0, "broken.png is not a readable image"],
]


SUFFIXES = pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])


def column(path, name: str) -> list:
    if path.suffix == ".parquet":
        return pq.read_table(path)[name].to_pylist()
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file) if path.suffix == ".csv" else map(json.loads, file)
        return [row[name] for row in rows]


def write(tmp_path, name: str, **options):
    path = tmp_path / name
    write_table(path, iter(SCORED), **options)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    return path


def test_jsonl(tmp_path):
    lines = write(tmp_path, "a.jsonl").read_text("utf-8").split("\n")
    assert lines.pop() == ""
    assert [json.loads(line) for line in lines] == [dict(zip(FIELDS, row, strict=True)) for row in ROWS]
    assert [list(json.loads(line)) for line in lines] == [FIELDS] * 3


def test_csv(tmp_path):
    with open(write(tmp_path, "a.CSV"), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row, expected in zip(rows, ROWS, strict=True):
        assert list(row) == FIELDS
        assert row["image"] == expected[0]
        assert [float(row[name]) if row[name] else None for name in FIELDS[1:4]] == expected[1:4]
        assert json.loads(row["rollouts"]) == expected[4]
        assert (row["error"] or None) == expected[6]


def test_parquet(tmp_path):
    table = pq.read_table(write(tmp_path, "a.parquet"))
    assert table.column_names == FIELDS
    assert table.to_pylist() == [dict(zip(FIELDS, row, strict=True)) for row in ROWS]


@SUFFIXES
def test_reasoning_if_wanted(tmp_path, suffix):
    path = write(tmp_path, f"a.{suffix}", reasoning=True)
    assert [value or None for value in column(path, "reasoning")] == ["dark, “odd”", "<answer>nan</answer>", None]


@SUFFIXES
def test_half_of_a_surrogate_pair_is_written_as_its_number(tmp_path, suffix):
    write_table(tmp_path / f"a.{suffix}", [ScoredImage("a.png", error="cut \ud800 off")])
    (error,) = column(tmp_path / f"a.{suffix}", "error")
    assert error == ("cut \ud800 off" if suffix == "jsonl" else "cut \\ud800 off")


def test_more_rows_than_a_chunk_of_parquet(tmp_path):
    many = [score_answers(f"{number}.png", ["<answer>3</answer>"]) for number in range(2500)]
    write_table(tmp_path / "a.parquet", many)
    assert pq.read_table(tmp_path / "a.parquet")["image"].to_pylist() == [each.image for each in many]


def test_an_unknown_ending_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"a\.txt.*\.jsonl, \.csv, \.parquet"):
        write(tmp_path, "a.txt")


@SUFFIXES
def test_a_failure_leaves_the_old_file(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_text("old")

    def failing():
        yield SCORED[0]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_table(path, failing())
    assert path.read_text() == "old"
