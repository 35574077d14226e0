import shutil

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, concatenate_datasets, load_from_disk
from datasets import Image as ImageFeature
from PIL import Image

from iqa_layouts import refused, write_images, write_rows
from q_hawkeye_trl.data.folder import check_rows, load_folder
from q_hawkeye_trl.data.label_tables import TableColumns
from q_hawkeye_trl.data.mix import mix
from q_hawkeye_trl.data.preparation import prepare
from q_hawkeye_trl.data.readers import READERS
from q_hawkeye_trl.pairs.pair_run import make_pairs
from q_hawkeye_trl.pairs.pair_settings import PairSettings


def _set(tmp_path, name, count, first=0, embed=False):
    """A prepared set: images `first`, `first + 1`, …; every fifth is a test image."""
    root = tmp_path / f"{name}-files"
    rows = [
        (f"{name}{n}.png", 1 + n % 5, "test" if n % 5 == 4 else "train", f"r{n % 3}-{n % 5 == 4}")
        for n in range(count)
    ]
    write_rows(root / "t.csv", ["image", "mos", "split", "ref"], rows)
    write_images(root, [row[0] for row in rows], first=first)
    columns = TableColumns(split="split", reference="ref")
    labels = READERS["table"](root, labels="t.csv", direction="higher", ends=(1, 5), name=name, columns=columns)
    prepare(labels, tmp_path / name, embed=embed)
    return tmp_path / name


@pytest.mark.parametrize(("shard", "batch"), [(2000, 64), (13, 5)])
def test_sets_alternate_in_proportion_and_nothing_is_lost(tmp_path, monkeypatch, shard, batch):
    monkeypatch.setattr("q_hawkeye_trl.data.mix._SHARD_ROWS", shard)
    monkeypatch.setattr("q_hawkeye_trl.data.mix._BATCH_ROWS", batch)
    sets = {"a": _set(tmp_path, "a", 50), "b": _set(tmp_path, "b", 100, first=1000, embed=True)}
    result = mix(list(sets.values()), tmp_path / "out")
    data = load_from_disk(tmp_path / "out")
    assert list(data) == ["train", "test"]
    for split, part in data.items():
        names = part["dataset"][:]
        for name, folder in sets.items():
            original = load_from_disk(folder)[split]
            mixed = part.select([i for i, each in enumerate(names) if each == name])
            assert len(mixed) == len(original)
            for row, expected in zip(mixed, original, strict=True):  # in their own order
                assert np.array_equal(np.asarray(row.pop("image")), np.asarray(expected.pop("image")))
                assert row == expected
        for stop in range(3, len(part), 3):
            assert abs(names[:stop].count("a") / stop - 1 / 3) <= 1 / stop + 1e-9
    assert result.splits["train"]["sets"] == {"a": 40, "b": 80}
    raw = data["train"].cast_column("image", ImageFeature(decode=False))
    assert {(row["dataset"], row["image"]["bytes"] is None) for row in raw} == {("a", True), ("b", False)}
    check_rows(load_folder(tmp_path / "out", "train"), score_min=1, score_max=5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| train | 40 | 80 |" in card
    assert "MOS of different sets have no common order" in card


def test_degraded_views_that_only_one_set_has_are_none_in_the_other(tmp_path):
    a, b = _set(tmp_path, "a", 10), _set(tmp_path, "b", 10, first=500)
    data = load_from_disk(a)
    views = {}
    for split, table in data.items():
        images = [Image.new("RGB", (128, 64), (n, 0, 0)) if n else None for n in range(len(table))]
        column = Dataset.from_dict({"degraded_image": images}, features=Features(degraded_image=ImageFeature()))
        views[split] = concatenate_datasets([table, column], axis=1)
    DatasetDict(views).save_to_disk(tmp_path / "paired")
    mix([tmp_path / "paired", b], tmp_path / "out")
    train = load_folder(tmp_path / "out", "train")
    check_rows(train, score_min=1, score_max=5)
    present = {row["image_id"]: row["degraded_image"] is not None for row in train}
    assert sum(present.values()) == 7
    assert not any(value for name, value in present.items() if name.startswith("b"))


def test_the_same_pixels_in_splits_of_different_sets_are_leakage(tmp_path):
    folders = [_set(tmp_path, "a", 10), _set(tmp_path, "b", 10, first=4)]  # image 4: tested in a, trained on in b
    with pytest.raises(ValueError, match=r"a/a4\.png \(test\)") as error:
        mix(folders, tmp_path / "out")
    count = int(str(error.value).rstrip(".").split("--allow-leakage ")[1])
    assert not (tmp_path / "out").exists()
    assert len(mix(folders, tmp_path / "out", allowed={"leakage": count}).faults) == count
    assert "Permitted faults" in (tmp_path / "out" / "README.md").read_text()


def test_the_same_command_twice_does_nothing_and_other_views_are_another_mix(tmp_path):
    a, b = _set(tmp_path, "a", 10), _set(tmp_path, "b", 10, first=500)
    for strength, folder in (("jpeg@4", "pairs"), ("jpeg@5", "other")):
        make_pairs(a, tmp_path / folder, PairSettings(degradations=[strength]), progress=False)
    folders = [tmp_path / "pairs", b]
    mix(folders, tmp_path / "out")
    assert mix(folders, tmp_path / "out").existed
    refused("made with another mix", mix, folders[::-1], tmp_path / "out", error=FileExistsError)
    shutil.rmtree(tmp_path / "pairs")
    (tmp_path / "other").rename(tmp_path / "pairs")
    refused("made with another rows", mix, folders, tmp_path / "out", error=FileExistsError)


def test_sets_that_do_not_match_are_refused(tmp_path):
    a, b, out = _set(tmp_path, "a", 10), _set(tmp_path, "b", 10, first=500), tmp_path / "out"
    (tmp_path / "more").mkdir()
    data = load_from_disk(b)
    data.remove_columns("image_hash").save_to_disk(tmp_path / "c")
    data.cast_column("mos_raw", data["train"].features["dataset"]).save_to_disk(tmp_path / "d")
    data["train"].save_to_disk(tmp_path / "e")
    for folders, message in (
        ([a], "at least two"),
        ([a, f"{a}/"], "names one folder twice"),
        ([a, _set(tmp_path / "more", "a", 10, first=90)], "both hold the set 'a'"),
        ([a, tmp_path / "c"], r"c, train.*image_hash"),
        ([a, tmp_path / "d"], "Column `mos_raw`"),
        ([a, tmp_path / "e"], "has no splits"),
    ):
        refused(message, mix, folders, out)
    refused("nowhere", mix, [a, tmp_path / "nowhere"], out, error=FileNotFoundError)
    refused(r"b, which is only read", mix, [a, b], b / "mix")
    assert not out.exists()
    assert not (b / "mix.partial").exists()
