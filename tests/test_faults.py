import csv
import math
import statistics

import numpy as np

from iqa_layouts import refused
from q_hawkeye_trl.data.faults import Fault, check_faults, check_labels, row_faults, split_faults
from q_hawkeye_trl.data.inspection import Finding
from q_hawkeye_trl.data.labels import LabelRow, LabelSet


def _labels(rows, mos=None, levels=None, ends=None):
    mos, levels = np.array(mos or [3.0] * len(rows)), None if levels is None else np.array(levels, dtype=float)
    described = {"scale": "deqa", "direction": "higher", "scores": "MOS", "rule": "rule", "folder": None}
    stds = np.full(len(rows), math.nan)
    return LabelSet("mine", rows, mos, stds, files=["labels.csv"], ends=ends, levels=levels, **described)


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
    splits, references = ["train", "test", "train", "train", "validation", "test"], ["r", None, "s", "s", "r", None]
    assert split_faults(list("abcdef"), splits, list("112234"), references) == [
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
    faults = [Fault("missing", f"/x/{n}.png", "gone") for n in range(12)] + [Fault("leakage", "a\nb\udcff,", '"')]
    parts = ["nothing was written", "12 images", r"/x/9\.png: gone", "and 2 more", r"by --allow-missing 12\.$"]
    path = tmp_path / "faults.csv"
    refused("(?s)" + ".*".join(parts), check_faults, faults, {"missing": 11, "leakage": 1}, path)
    with path.open(newline="") as file:  # holds names of any kind
        assert list(csv.reader(file))[1:] == [*map(list, faults[:-1]), ["leakage", "a\nb\\udcff,", '"']]
    refused("--allow-missing 12 --allow-leakage 1", check_faults, faults, {}, path)
    check_faults(faults, {"missing": 12, "leakage": 3}, path)
    check_faults([], {}, path)


def test_repeated_rows_are_refused_within_a_split_only():
    check_labels(_labels([_row("a", split="train"), _row("a", "other", split="test")]))
    refused(r"line 9: a .*line 2", check_labels, _labels([_row("a", "line 2"), _row("b"), _row("a", "line 9")]))
    refused(r"line 4: '\\udcff\.png'", check_labels, _labels([_row("\udcff.png", "line 4")]))  # not Unicode


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
    rows, levels = [_row(str(n)) for n in range(50)], [n % 5 + 1 for n in range(50)]
    falling = [5 - level * 0.7 + n / 100 for n, level in enumerate(levels)]
    rising = [6 - value for value in falling]
    check_labels(_labels(rows, mos=falling, levels=levels))
    refused(r"labels.csv", check_labels, _labels(rows, mos=rising, levels=levels))
    # too few images, or no order of levels, prove nothing
    check_labels(_labels(rows[:20], mos=rising[:20], levels=levels[:20]))
    check_labels(_labels(rows, mos=rising, levels=[math.nan] * 50))
    check_labels(_labels(rows, mos=[3.0] * 50, levels=levels))
