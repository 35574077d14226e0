import csv
import math
import statistics

import numpy as np
import pytest

from iqa_layouts import refused
from q_hawkeye_trl.data.faults import (
    FAULTS,
    Fault,
    check_faults,
    check_labels,
    describe_faults,
    row_faults,
    split_faults,
    write_faults,
)
from q_hawkeye_trl.data.inspection import Finding
from q_hawkeye_trl.data.labels import LabelRow, LabelSet


def _labels(rows, mos=None, levels=None, ends=None):
    count = len(rows)
    return LabelSet(
        name="mine",
        rows=rows,
        mos=np.array([3.0] * count if mos is None else mos),
        mos_std=np.array([math.nan] * count),
        scale="deqa",
        direction="higher",
        scores="MOS",
        rule="rule",
        folder=None,
        files=["labels.csv"],
        ends=ends,
        levels=None if levels is None else np.array(levels, dtype=float),
    )


def _row(name, where=None, split=None, **more):
    return LabelRow(name, f"/x/{name}", where or f"line {name}", 3.0, split=split, **more)


def test_rows_with_faults_are_listed_with_their_place():
    labels = _labels([_row("a"), _row("b"), _row("c", split="test")], mos=[3.0, math.nan, 2.0])
    findings = [Finding("/x/a", 1, 1, "h"), Finding("/x/b", 1, 1, "h"), Finding("/x/c", 0, 0, None, "missing", "gone")]
    assert row_faults(labels, findings) == [
        Fault("unscored", "b", "line b has no score"),
        Fault("missing", "/x/c", "gone (line c, test)"),
    ]


def test_contents_and_references_in_several_splits_are_listed_once_each():
    names, splits = list("abcdef"), ["train", "test", "train", "train", "validation", "test"]
    pixels = ["1", "1", "2", "2", "3", "4"]
    references = ["r", None, "s", "s", "r", None]
    faults = split_faults(names, splits, pixels, references)
    assert faults == [
        Fault("leakage", "a (train), b (test)", "the same pixels"),
        Fault("shared-reference", "a (train), e (validation)", "all of r"),
    ]


def test_leakage_equals_a_plain_comparison_of_all_pairs():
    rng = np.random.default_rng(0)
    for _ in range(20):
        pixels, splits = rng.integers(0, 10, 30).astype(str), rng.choice(["train", "validation", "test"], 30)
        expected = {
            pixels[i] for i in range(30) for j in range(30) if pixels[i] == pixels[j] and splits[i] != splits[j]
        }
        faults = split_faults([str(n) for n in range(30)], splits.tolist(), pixels.tolist(), [None] * 30)
        assert len(faults) == len(expected)


def test_faults_stop_unless_each_kind_is_permitted_in_full(tmp_path):
    faults = [Fault("missing", f"/x/{n}.png", "gone") for n in range(12)] + [Fault("leakage", "a, b", "same")]
    with pytest.raises(ValueError, match="nothing was written") as error:
        check_faults(faults, {"missing": 11, "leakage": 1}, tmp_path / "faults.csv")
    message = str(error.value)
    assert "12 images" in message
    assert "/x/9.png: gone" in message
    assert "and 2 more" in message
    assert message.endswith("by --allow-missing 12.")
    with (tmp_path / "faults.csv").open() as file:
        assert list(csv.reader(file))[1:] == [list(fault) for fault in faults]
    refused("--allow-missing 12 --allow-leakage 1", check_faults, faults, {}, tmp_path / "faults.csv")
    check_faults(faults, {"missing": 12, "leakage": 3}, tmp_path / "faults.csv")
    check_faults([], {}, tmp_path / "faults.csv")


def test_every_kind_of_fault_has_words():
    faults = [Fault(kind, "place", "reason") for kind in FAULTS]
    assert len(describe_faults(faults).splitlines()) == 2 * len(FAULTS)


def test_lists_hold_names_of_any_kind(tmp_path):
    write_faults([Fault("missing", "a\nb\udcff,.png", '"')], tmp_path / "f.csv")
    with (tmp_path / "f.csv").open(newline="") as file:
        assert list(csv.reader(file))[1] == ["missing", "a\nb\\udcff,.png", '"']


def test_repeated_rows_are_refused_within_a_split_only():
    check_labels(_labels([_row("a", split="train"), _row("a", "other", split="test")]))
    refused(r"line 9: a .*line 2", check_labels, _labels([_row("a", "line 2"), _row("b"), _row("a", "line 9")]))


def test_names_that_are_not_unicode_are_refused():
    refused(r"line 4: '\\udcff\.png' is not valid Unicode", check_labels, _labels([_row("\udcff.png", "line 4")]))


def test_variances_in_place_of_standard_deviations_are_seen():
    def rows(*stds):
        return [_row(f"{n}")._replace(std=std) for n, std in enumerate(stds)]

    for raters in ([0, 100], [0, 0, 100], [0, 100, 50]):  # real opinions never are, not even the widest
        check_labels(_labels(rows(statistics.stdev(raters), None), ends=(0, 100)))
    refused(r"line 1 \(1\): .*361.*0 to 100.*1 of 2 rows", check_labels, _labels(rows(19.0, 361.0), ends=(0, 100)))
    check_labels(_labels(rows(100 / math.sqrt(2)), ends=(0, 100)))  # the widest there is
    refused(r"70\.71", check_labels, _labels(rows(71.0), ends=(0, 100)))
    check_labels(_labels(rows(361.0)))  # nothing is known about the scale


def test_a_mos_that_rises_with_the_distortion_is_refused():
    rows = [_row(str(n)) for n in range(50)]
    levels = [n % 5 + 1 for n in range(50)]
    falling = [5 - level * 0.7 + n / 100 for n, level in enumerate(levels)]
    check_labels(_labels(rows, mos=falling, levels=levels))
    refused(r"labels.csv", check_labels, _labels(rows, mos=[6 - value for value in falling], levels=levels))
    # too few images, or no order of levels, tell nothing
    check_labels(_labels(rows[:20], mos=[6 - value for value in falling[:20]], levels=levels[:20]))
    check_labels(_labels(rows, mos=[6 - value for value in falling], levels=[math.nan] * 50))
    check_labels(_labels(rows, mos=[3.0] * 50, levels=levels))
