"""From labels and images to the folder that training reads."""

import os
import shutil
from collections import defaultdict

import pytest
from datasets import Dataset, load_from_disk
from datasets import Image as ImageFeature
from PIL import Image

from iqa_layouts import csiq_image, refused, write_csiq, write_image, write_images, write_kadid, write_rows, write_spaq
from q_hawkeye_trl.data.degradations import pixel_hash
from q_hawkeye_trl.data.folder import check_rows, load_folder
from q_hawkeye_trl.data.images import load_image
from q_hawkeye_trl.data.inspection import read_image_file
from q_hawkeye_trl.data.label_tables import TableColumns
from q_hawkeye_trl.data.preparation import FEATURES, prepare
from q_hawkeye_trl.data.readers import READERS
from q_hawkeye_trl.io.publication import resumable_folder

NAMES = [f"I{r:02}_{k:02}_{level:02}.png" for r in range(1, 11) for k in (1, 2) for level in (1, 5)]


@pytest.fixture
def kadid(tmp_path):
    root = tmp_path / "kadid10k"
    rows = [(name, name[:3] + ".png", 4.9 - int(name[7:9]) / 2 - n / 100, 0.25) for n, name in enumerate(NAMES)]
    write_kadid(root, rows)
    write_images(root / "images", NAMES)
    write_images(root / "images", [f"I{r:02}.png" for r in range(1, 11)], first=1000)
    return root


def _kadid(root, out, **options):
    return prepare(READERS["kadid10k"](root), out, **options)


def _rows(folder):
    data, raw = load_from_disk(folder), ImageFeature(decode=False)
    return {row["image_id"]: (split, row) for split in data for row in data[split].cast_column("image", raw)}


def _mine(root, labels="t.csv", **options):
    return READERS["table"](root, labels=labels, direction="higher", ends=(1, 5), name="mine", **options)


def test_rows_have_the_documented_columns_and_values(kadid, tmp_path):
    result = _kadid(kadid, tmp_path / "out")
    data = load_from_disk(tmp_path / "out")
    assert list(data) == ["train", "validation", "test"]
    assert data["train"].features == FEATURES
    rows = _rows(tmp_path / "out")
    assert set(rows) == set(NAMES)
    labels = READERS["kadid10k"](kadid)
    for label, mos, std in zip(labels.rows, labels.mos, labels.mos_std, strict=True):
        _, row = rows[label.image_id]
        assert row == {
            "image": {"bytes": None, "path": str(kadid / "images" / label.image_id)},
            "image_id": label.image_id,
            "dataset": "kadid10k",
            "reference": label.reference,
            "mos": mos,
            "mos_raw": label.score,
            "mos_std": std,
            "mos_std_raw": 0.5,
            "mos_scale": "deqa",
            "mos_direction": "higher",
            "image_hash": pixel_hash(load_image(kadid / "images" / label.image_id)),
        }
    assert {name: split["rows"] for name, split in result.splits.items()} == {"train": 28, "validation": 4, "test": 8}
    assert not (tmp_path / "out.partial").exists()
    dataset = load_folder(tmp_path / "out", "train")
    check_rows(dataset, score_min=1, score_max=5)
    assert dataset[0]["prompt"][0]["role"] == "user"
    assert dataset[0]["image"].size == (128, 64)


def test_each_reference_is_in_one_split_drawn_by_the_seed(kadid, tmp_path):
    splits = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        _kadid(kadid, tmp_path / name, seed=seed)
        splits[name] = defaultdict(set)
        for split, row in _rows(tmp_path / name).values():
            splits[name][row["reference"]].add(split)
        assert all(len(found) == 1 for found in splits[name].values())
    assert splits["a"] == splits["b"]
    assert splits["a"] != splits["c"]


def test_references_of_the_same_pixels_are_one(kadid, tmp_path):
    for r in range(2, 11):
        shutil.copy(kadid / "images" / "I01.png", kadid / "images" / f"I{r:02}.png")
    result = _kadid(kadid, tmp_path / "out")
    assert [split["rows"] for split in result.splits.values()] == [40]
    assert any("validation, test got none" in note for note in result.notes)


def test_an_unreadable_reference_is_a_note_not_a_fault(kadid, tmp_path):
    (kadid / "images" / "I01.png").write_text("not an image")
    assert any("1 references can't be read (I01.png)" in note for note in _kadid(kadid, tmp_path / "out").notes)


def test_embedded_images_are_the_files_byte_for_byte_and_originals_are_untouched(kadid, tmp_path):
    def state():
        return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(kadid.rglob("*")) if p.is_file()}

    before = state()
    _kadid(kadid, tmp_path / "out", embed=True)
    assert state() == before
    shutil.rmtree(kadid)
    for name, (_, row) in _rows(tmp_path / "out").items():
        assert row["image"] == {"bytes": before[kadid / "images" / name][0], "path": name}
    check_rows(load_folder(tmp_path / "out", "test"), score_min=1, score_max=5)


def test_the_card_says_counts_ranges_rules_versions_and_hashes(kadid, tmp_path):
    _kadid(kadid, tmp_path / "out", seed=5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\npretty_name: ")
    facts = ("min = 2.01 and max = 4.4 ", "seed 5, shares 0.7:0.1:0.2", "| train | 28 | 7 | ", "dmos.csv`, sha256 `")
    for fact in (*facts, "by reference", "by content", "datasets ", "q-hawkeye-trl "):
        assert fact in card, fact


def test_faults_stop_before_anything_is_written_and_are_listed(kadid, tmp_path):
    (kadid / "images" / NAMES[0]).unlink()
    (kadid / "images" / NAMES[1]).write_text("not an image")
    options = "--allow-missing 1 --allow-unreadable 1"
    refused(rf"(?s){NAMES[0]}.*{NAMES[1]}.*{options}", _kadid, kadid, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert NAMES[0] in (tmp_path / "out.partial" / "faults.csv").read_text()
    result = _kadid(kadid, tmp_path / "out", allowed={"missing": 1, "unreadable": 1})
    assert {fault.kind for fault in result.faults} == {"missing", "unreadable"}
    assert set(_rows(tmp_path / "out")) == set(NAMES[2:])
    assert NAMES[1] in (tmp_path / "out" / "faults.csv").read_text()
    assert "1 images can't be read" in (tmp_path / "out" / "README.md").read_text()
    refused("1 missing, 1 unreadable", _kadid, kadid, tmp_path / "out", error=FileExistsError)  # a stricter command


def test_missing_images_change_neither_the_scale_nor_the_splits_of_the_others(kadid, tmp_path):
    _kadid(kadid, tmp_path / "whole")
    for name in NAMES[:2]:  # the best image is among them
        (kadid / "images" / name).unlink()
    _kadid(kadid, tmp_path / "part", allowed={"missing": 2})
    whole = _rows(tmp_path / "whole")
    assert _rows(tmp_path / "part") == {name: whole[name] for name in NAMES[2:]}


def test_rows_without_a_score_are_dropped_only_if_permitted(tmp_path):
    write_spaq(tmp_path / "spaq", [("a.jpg", 10.0), ("b.jpg", None), ("c.jpg", 20.0), ("d.jpg", 30.0)])
    write_images(tmp_path / "spaq" / "TestImage", ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    refused(r"1 .*unscored.*\n.*b\.jpg", prepare, READERS["spaq"](tmp_path / "spaq"), tmp_path / "out")
    prepare(READERS["spaq"](tmp_path / "spaq"), tmp_path / "out", allowed={"unscored": 1})
    assert set(_rows(tmp_path / "out")) == {"a.jpg", "c.jpg", "d.jpg"}


def _split_table(root, rows):
    write_rows(root / "t.csv", ["image", "mos", "split", "ref"], rows)
    return _mine(root, columns=TableColumns(split="split", reference="ref"))


def test_the_same_pixels_in_two_given_splits_are_leakage(tmp_path):
    rows = [("a.png", 2, "train"), ("b.png", 3, "test"), ("copy of a.bmp", 4, "test"), ("a.png", 2, "validation")]
    write_images(tmp_path, ["a.png", "b.png"])
    load_image(tmp_path / "a.png").save(tmp_path / "copy of a.bmp")  # another file and format
    labels = _split_table(tmp_path, [(*row, "") for row in rows])
    refused(r"1 .*leakage.*\n.*copy of a\.bmp \(test\)", prepare, labels, tmp_path / "out")
    result = prepare(labels, tmp_path / "out", allowed={"leakage": 1})
    assert [split["rows"] for split in result.splits.values()] == [1, 1, 2]  # nothing is dropped


def test_a_reference_in_two_given_splits_is_reported(tmp_path):
    write_images(tmp_path, ["a.png", "b.png"])
    labels = _split_table(tmp_path, [("a.png", 2, "train", "r"), ("b.png", 3, "test", "r")])
    refused("--allow-shared-reference 1", prepare, labels, tmp_path / "out")
    prepare(labels, tmp_path / "out", allowed={"shared-reference": 1})


def test_drawn_splits_keep_copies_together(tmp_path):
    names = [f"{n}.png" for n in range(30)]
    for n, name in enumerate(names):
        write_image(tmp_path / name, n // 3)  # ten contents, three files each
    write_rows(tmp_path / "t.csv", ["image", "mos"], [(name, 1 + n % 5) for n, name in enumerate(names)])
    result = prepare(_mine(tmp_path), tmp_path / "out")
    splits = defaultdict(set)
    for split, row in _rows(tmp_path / "out").values():
        splits[row["image_hash"]].add(split)
    assert len(splits) == 10
    assert all(len(found) == 1 for found in splits.values())
    assert any("20 images have the same pixels" in note and "4.png = 3.png" in note for note in result.notes)


def test_links_out_of_the_folder_are_reported_and_followed_only_when_permitted(kadid, tmp_path):
    outside = tmp_path / "elsewhere.png"
    (kadid / "images" / NAMES[0]).rename(outside)
    (kadid / "images" / NAMES[0]).symlink_to(outside)
    refused(rf"1 .*outside.*\n.*{NAMES[0]}: it leads to .*elsewhere", _kadid, kadid, tmp_path / "out")
    _kadid(kadid, tmp_path / "out", allowed={"outside": 1})
    assert NAMES[0] not in _rows(tmp_path / "out")
    _kadid(kadid, tmp_path / "all", follow_links=True)
    assert _rows(tmp_path / "all")[NAMES[0]][1]["image_hash"] == pixel_hash(load_image(outside))


def test_csiq_is_reversed_in_the_result(tmp_path):
    rows = [(f"{image}.BLUR.{level}.png", level / 5, 0.1) for image in (1600, "lake", "log") for level in range(1, 6)]
    write_csiq(tmp_path / "csiq", rows)
    for number, (name, _, _) in enumerate(rows):
        write_image(tmp_path / "csiq" / "dst_imgs" / csiq_image(name), number)
    prepare(READERS["csiq"](tmp_path / "csiq"), tmp_path / "out")
    for _, row in _rows(tmp_path / "out").values():
        assert row["mos_direction"] == "lower"
        assert row["mos"] == pytest.approx(6 - 5 * row["mos_raw"])
        assert row["reference"] == f"{row['image_id'].split('.')[0]}.png"


def test_nothing_is_overwritten(kadid, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name, text in (("mine.txt", "mine"), *(("prepare.json", t) for t in ("[]", "{}", '{"request": 3}', "{"))):
        (out / name).write_text(text)
        refused("out is not empty", _kadid, kadid, out, error=FileExistsError)
        assert [path.read_text() for path in out.iterdir()] == [text]
        (out / name).unlink()
    (tmp_path / "file").touch()
    refused("file is a file", _kadid, kadid, tmp_path / "file", error=FileExistsError)
    _kadid(kadid, out)  # an empty folder is fine


def test_the_same_command_twice_does_nothing_and_another_is_refused(kadid, tmp_path):
    first = _kadid(kadid, tmp_path / "out")
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    again = _kadid(kadid, tmp_path / "out")
    assert again.existed
    assert not first.existed
    assert again.splits == first.splits
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == stamps
    refused("made with another seed", _kadid, kadid, tmp_path / "out", seed=1, error=FileExistsError)
    (kadid / "dmos.csv").write_text((kadid / "dmos.csv").read_text().replace("0.25", "0.36", 1))
    refused("made with another labels, rows", _kadid, kadid, tmp_path / "out", error=FileExistsError)


def test_options_of_a_reader_make_another_command(tmp_path):
    rows = [(f"a{n}_b.png", f"{n}.png", f"o{n}.png", n) for n in (1, 2)]
    write_rows(tmp_path / "t.csv", ["name", "image", "other", "mos"], rows)
    write_images(tmp_path, ["1.png", "2.png", "o1.png", "o2.png"])

    def read(image="image", pattern="^(a)"):
        return _mine(tmp_path, columns=TableColumns(image=image, image_id="name"), reference_pattern=pattern)

    prepare(read(), tmp_path / "out")
    assert prepare(read(), tmp_path / "out").existed
    for other in (read(image="other"), read(pattern="^(a[0-9])")):
        refused("made with another rows", prepare, other, tmp_path / "out", error=FileExistsError)


def test_a_result_inside_the_folder_of_the_labels_is_refused(tmp_path):
    write_rows(tmp_path / "data" / "train.csv", ["image", "mos"], [("1.png", 1), ("2.png", 2)])
    write_images(tmp_path, ["1.png", "2.png"])
    labels = _mine(tmp_path, "data")
    refused(r"data, which is only read", prepare, labels, tmp_path / "data" / "out")
    assert os.listdir(tmp_path / "data") == ["train.csv"]
    prepare(labels, tmp_path / "out")  # beside the images is fine


def test_one_run_at_a_time(kadid, tmp_path):
    with resumable_folder(tmp_path / "out"), pytest.raises(BlockingIOError, match="out"):
        _kadid(kadid, tmp_path / "out")
    _kadid(kadid, tmp_path / "out")


def test_a_resumed_run_equals_an_uninterrupted_one(kadid, tmp_path, monkeypatch):
    _kadid(kadid, tmp_path / "whole", embed=True)
    for limit in (3, 20, 45):
        seen = []

        def stop(total, seen=seen, limit=limit):
            def step():
                seen.append(1)
                if len(seen) == limit:
                    raise KeyboardInterrupt

            return step

        with pytest.raises(KeyboardInterrupt):
            _kadid(kadid, tmp_path / "out", embed=True, progress=stop)
        assert not (tmp_path / "out").exists()
    opened = []
    monkeypatch.setattr(
        "q_hawkeye_trl.data.inspection.load_image", lambda source: opened.append(source) or load_image(source)
    )
    _kadid(kadid, tmp_path / "out", embed=True)
    assert len(opened) < 10  # of 50
    assert _rows(tmp_path / "out") == _rows(tmp_path / "whole")


def test_shards_of_a_stopped_run_are_kept(kadid, tmp_path, monkeypatch):
    read = []

    def reading(limit):
        def limited(image, finding):
            if len(read) == limit:
                raise OSError(28, "No space left on device")
            read.append(image)
            return read_image_file(image, finding)

        return limited

    monkeypatch.setattr("q_hawkeye_trl.data.preparation._SHARD_ROWS", {True: 4, False: 4})
    monkeypatch.setattr("q_hawkeye_trl.data.preparation.read_image_file", reading(15))
    refused(r"no space left for .*out\.partial", _kadid, kadid, tmp_path / "out", embed=True, error=OSError)
    assert not (tmp_path / "out").exists()
    read.clear()
    monkeypatch.setattr("q_hawkeye_trl.data.preparation.read_image_file", reading(None))
    _kadid(kadid, tmp_path / "out", embed=True)
    assert len(read) == 40 - 12  # three shards of four were there
    assert set(_rows(tmp_path / "out")) == set(NAMES)
    assert len(list((tmp_path / "out" / "train").glob("*.arrow"))) == 7


def test_images_of_a_table_are_embedded_whatever_was_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    images = [Image.new("RGB", (8, 8), (n * 20, 0, 0)) for n in range(6)]
    table = Dataset.from_dict({"image": images, "mos": [1.0, 2, 3, 4, 5, 3]}).cast_column("image", ImageFeature())
    table.to_parquet(tmp_path / "t.parquet")
    prepare(_mine(tmp_path, "t.parquet"), tmp_path / "out")
    data = load_from_disk(tmp_path / "out")
    reds = sorted(row["image"].getpixel((0, 0))[0] for split in data.values() for row in split)
    assert reds == list(range(0, 120, 20))


def test_nothing_usable_and_unknown_permissions_are_refused(kadid, tmp_path):
    refused("Unknown faults gone", _kadid, kadid, tmp_path / "out", allowed={"gone": 1})
    shutil.rmtree(kadid / "images")
    (kadid / "images").mkdir()
    refused(r"40 missing.*images", _kadid, kadid, tmp_path / "out", allowed={"missing": 100})
