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


SUFFIXES = pytest.mark.parametrize("suffix", ["jsonl", "CSV", "parquet"])


def rows_of(path) -> list[dict]:
    """The rows of a file in any format; JSON in the cells of CSV is parsed."""
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    with open(path, newline="", encoding="utf-8") as file:
        if path.suffix == ".jsonl":
            return list(map(json.loads, file))
        texts = ("image", "error", "reasoning")
        return [
            {name: (cell or None) if name in texts else json.loads(cell or "null") for name, cell in row.items()}
            for row in csv.DictReader(file)
        ]


def write(tmp_path, name: str, **options):
    path = tmp_path / name
    write_table(path, iter(SCORED), **options)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    return path


@SUFFIXES
def test_rows_read_back(tmp_path, suffix):
    rows = rows_of(write(tmp_path, f"a.{suffix}"))
    assert rows == [dict(zip(FIELDS, row, strict=True)) for row in ROWS]
    assert [list(row) for row in rows] == [FIELDS] * 3


@SUFFIXES
def test_reasoning_if_wanted(tmp_path, suffix):
    rows = rows_of(write(tmp_path, f"a.{suffix}", reasoning=True))
    assert [row["reasoning"] or None for row in rows] == ["dark, “odd”", "<answer>nan</answer>", None]


@SUFFIXES
def test_half_of_a_surrogate_pair_is_written_as_its_number(tmp_path, suffix):
    write_table(tmp_path / f"a.{suffix}", [ScoredImage("a.png", error="cut \ud800 off")])
    (row,) = rows_of(tmp_path / f"a.{suffix}")
    assert row["error"] == ("cut \ud800 off" if suffix == "jsonl" else "cut \\ud800 off")


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
