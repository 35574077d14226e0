"""The doctor's look at data, with one fault at a time."""

from types import SimpleNamespace

from datasets import Dataset, DatasetDict, Image
from PIL import Image as PILImage

from q_hawkeye_trl.demo.synthetic import write_synthetic_koniq
from q_hawkeye_trl.doctor.data import check_data
from q_hawkeye_trl.doctor.finding import Plan
from tiny_models import tiny_dataset


def write(folder, **parts) -> Plan:
    DatasetDict(parts).save_to_disk(folder)
    return Plan(data=str(folder))


def three(**options) -> dict[str, Dataset]:
    return {name: tiny_dataset(4, seed=seed, **options) for seed, name in enumerate(("train", "validation", "test"))}


def faults(plan) -> list[tuple[str, str]]:
    findings, _ = check_data(plan)
    assert all(finding.advice for finding in findings if finding.level != "ok")
    return [(finding.level, finding.text) for finding in findings if finding.level != "ok"]


def test_prepared_data(tmp_path):
    plan = write(tmp_path / "data", **three(degraded=True))
    findings, splits = check_data(plan)
    assert [(finding.area, finding.level) for finding in findings] == [
        ("data train", "ok"),
        ("data validation", "ok"),
        ("data test", "ok"),
    ]
    mos = splits["train"]["mos"]
    assert f"4 rows, MOS {min(mos):.2f} to {max(mos):.2f}, mean {sum(mos) / 4:.2f}" in findings[0].text
    assert "the images of 4 rows and 4 degraded views decode" in findings[0].text


def test_koniq(tmp_path):
    write_synthetic_koniq(tmp_path / "koniq", train=10, validation=2, test=2, progress=False)
    findings, splits = check_data(Plan(data=str(tmp_path / "koniq")))
    assert {finding.level for finding in findings} == {"ok"}
    assert {name: len(rows) for name, rows in splits.items()} == {"training": 10, "validation": 2, "test": 2}
    (tmp_path / "koniq" / "512x384" / splits["training"]["image_id"][0]).unlink()
    ((level, text),) = faults(Plan(data=str(tmp_path / "koniq")))
    assert level == "problem"
    assert "images are missing" in text
    allowed = SimpleNamespace(mos_scale="deqa", allow_missing=1)
    ((level, text),) = faults(Plan(data=str(tmp_path / "koniq"), script_args=allowed))
    assert (level, "going on without 1" in text) == ("warning", True)


def test_nothing_to_look_at(tmp_path):
    assert check_data(Plan()) == ([], {})
    assert faults(Plan(data=str(tmp_path / "missing")))[0][0] == "problem"
    (tmp_path / "empty").mkdir()
    assert faults(Plan(data=str(tmp_path / "empty")))[0][0] == "problem"


def test_mos_beyond_the_scale(tmp_path):
    parts = three()
    parts["train"] = parts["train"].remove_columns("mos").add_column("mos", [1.0, 2.0, 3.0, 72.5])
    plan = write(tmp_path / "data", **parts)
    ((level, text),) = faults(plan)
    assert level == "problem"
    assert "Row 3, column `mos`" in text


def test_one_mos_for_all(tmp_path):
    parts = three()
    parts["train"] = parts["train"].remove_columns("mos").add_column("mos", [3.0] * 4)
    ((level, text),) = faults(write(tmp_path / "data", **parts))
    assert (level, "all are the same" in text) == ("problem", True)


def test_a_missing_column(tmp_path):
    parts = {name: rows.remove_columns("mos") for name, rows in three().items()}
    found = faults(write(tmp_path / "data", **parts))
    assert [level for level, _ in found] == ["problem"] * 3
    assert "Expected the columns mos" in found[0][1]


def test_an_image_that_does_not_decode(tmp_path):
    parts = three()
    names = []
    for number in range(4):
        names.append(str(tmp_path / f"{number}.png"))
        PILImage.new("RGB", (8, 8)).save(names[-1])
    broken = parts["train"].remove_columns("image").add_column("image", names).cast_column("image", Image())
    (tmp_path / "2.png").write_bytes(b"no image")
    ((level, text),) = faults(write(tmp_path / "data", **parts | {"train": broken}))
    assert level == "problem"
    assert "2.png" in text


def test_a_degraded_view_of_another_size(tmp_path):
    parts = three()
    views = [PILImage.new("RGB", (84, 56))] * 3 + [PILImage.new("RGB", (56, 84))]
    rows = [row | {"degraded_image": view} for row, view in zip(parts["train"], views, strict=True)]
    ((level, text),) = faults(write(tmp_path / "data", **parts | {"train": Dataset.from_list(rows)}))
    assert level == "problem"
    assert "row 3 (picture-0-3)" in text


def test_missing_splits(tmp_path):
    parts = three()
    plan = write(tmp_path / "data", training=parts["train"], test=parts["test"])
    found = faults(plan)
    assert [level for level, _ in found] == ["problem", "warning"]
    assert "no split 'train'" in found[0][1]
    assert "no split 'validation'" in found[1][1]
    plan.script_args = SimpleNamespace(held_out_split="held", validate=False, validation_split=None)
    assert ["no split 'held'" in text for _, text in faults(plan)] == [False, True]


def test_one_dataset_without_splits(tmp_path):
    tiny_dataset(4).save_to_disk(tmp_path / "data")
    assert any("no split 'train'" in text for _, text in faults(Plan(data=str(tmp_path / "data"))))


def test_images_in_two_splits(tmp_path):
    parts = three()
    parts["test"] = (
        parts["test"].remove_columns("image_id").add_column("image_id", ["picture-0-1", "picture-0-2", "x", "y"])
    )
    ((level, text),) = faults(write(tmp_path / "data", **parts))
    assert level == "warning"
    assert text == "2 image_ids are in 'train' and in 'test', for example picture-0-1"
