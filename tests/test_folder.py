import json
import math
import random

import datasets
import numpy as np
import pytest
from datasets import Dataset, DatasetDict, List
from datasets import Image as ImageFeature
from PIL import Image

from iqa_layouts import refused
from q_hawkeye_trl.data.folder import check_pair, check_rows, load_folder
from q_hawkeye_trl.text import quality_messages


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def _image(number=0, size=(8, 6)):
    return Image.new("RGB", size, (number * 10, 0, 0))


def _dataset(drop=(), **changes):
    columns = {
        "prompt": [quality_messages()] * 3,
        "image": [_image(n) for n in range(3)],
        "degraded_image": [_image(n + 1) if n else None for n in range(3)],
        "mos": [1.0, 2.0, 3.0],
        "image_id": ["0.png", "1.png", "2.png"],
        **changes,
    }
    dataset = Dataset.from_dict({name: values for name, values in columns.items() if name not in drop})
    for name in {"image", "degraded_image", "images", "degraded_images"} & set(dataset.column_names):
        dataset = dataset.cast_column(name, List(ImageFeature()) if name.endswith("s") else ImageFeature())
    return dataset


def _several(images, **more):
    return _dataset(drop=("image", "degraded_image"), images=images, **more)


def _check(dataset):
    check_rows(dataset, score_min=1, score_max=5)


# --- load_folder ---


def test_a_saved_dataset_comes_back(tmp_path):
    _dataset().save_to_disk(tmp_path)
    dataset = load_folder(tmp_path)
    _check(dataset)
    assert dataset["mos"][:] == [1, 2, 3]
    assert dataset["image_id"][:] == ["0.png", "1.png", "2.png"]
    assert dataset[2]["image"].getpixel((0, 0)) == (20, 0, 0)
    assert dataset[0]["degraded_image"] is None
    assert dataset[1]["degraded_image"].size == (8, 6)
    refused("'train'", load_folder, tmp_path, "train")


def test_splits_are_named_chosen_and_refused(tmp_path):
    DatasetDict(train=_dataset(), test=_dataset(mos=[5.0, 5.0, 5.0])).save_to_disk(tmp_path)
    assert load_folder(tmp_path, "test")["mos"][:] == [5, 5, 5]
    for wrong in (None, "dev"):
        refused("train, test", load_folder, tmp_path, wrong)


def test_parquet_shards_make_one_split(tmp_path):
    for shard in range(2):
        _dataset(mos=[1.0, 2.0, 3.0 + shard]).to_parquet(tmp_path / f"train-0000{shard}-of-00002.parquet")
    dataset = load_folder(tmp_path)
    _check(dataset)
    assert dataset["mos"][:] == [1, 2, 3, 1, 2, 4]
    assert isinstance(dataset.features["image"], ImageFeature)


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        _image(number).save(tmp_path / "pictures" / f"{number}.png")
    return tmp_path


def test_a_csv_beside_images_gets_prompt_and_row_numbers(pictures):
    rows = "image,degraded_image,mos\npictures/0.png,pictures/1.png,1.5\npictures/2.png,,4\n"
    (pictures / "labels.csv").write_text(rows)
    with pytest.warns(UserWarning, match="`image_id`"):
        dataset = load_folder(pictures)
    _check(dataset)
    assert dataset["mos"][:] == [1.5, 4]
    assert dataset["image_id"][:] == ["row-0", "row-1"]
    assert dataset[0]["prompt"] == quality_messages()
    assert dataset[1]["image"].getpixel((0, 0)) == (20, 0, 0)
    assert dataset[1]["degraded_image"] is None


def test_json_lines_with_several_images(pictures):
    rows = [
        {"images": ["pictures/0.png", "pictures/1.png"], "degraded_images": None, "mos": 2.0, "image_id": "a"},
        {"images": ["pictures/2.png"], "degraded_images": ["pictures/0.png"], "mos": 3.0, "image_id": "b"},
    ]
    (pictures / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = load_folder(pictures, "train")
    _check(dataset)
    assert [len(images) for images in dataset["images"]] == [2, 1]
    assert dataset[0]["degraded_images"] is None
    assert dataset[1]["degraded_images"][0].size == (8, 6)
    assert dataset[1]["images"][0].getpixel((0, 0)) == (20, 0, 0)


def test_an_image_folder_with_metadata_is_left_to_datasets(pictures):
    (pictures / "metadata.csv").write_text("file_name,mos,image_id\npictures/0.png,2,a\npictures/2.png,3,b\n")
    dataset = load_folder(pictures)
    _check(dataset)
    assert dict(zip(dataset["image_id"], dataset["mos"], strict=True)) == {"a": 2, "b": 3}


def test_missing_images_are_counted_and_named(pictures):
    (pictures / "labels.csv").write_text("image,mos\npictures/0.png,1\npictures/8.png,2\npictures/9.png,3\n")
    refused(r"`image`: 2 of 3 .*8\.png", load_folder, pictures, error=FileNotFoundError)


def test_your_own_prompt_is_kept_and_the_projects_asks_for_its_own_scale_only(tmp_path):
    own = [[{"role": "user", "content": "How sharp?"}]] * 3
    _dataset(prompt=own).save_to_disk(tmp_path / "own")
    assert load_folder(tmp_path / "own")["prompt"][:] == own
    _dataset(drop=["prompt"]).save_to_disk(tmp_path / "none")
    assert load_folder(tmp_path / "none")["prompt"][0] == quality_messages()
    refused(r"`prompt`.* 0 and 100", load_folder, tmp_path / "none", scale=(0.0, 100.0))


def test_folders_without_a_dataset_are_refused(tmp_path):
    refused("nowhere", load_folder, tmp_path / "nowhere", error=FileNotFoundError)
    for name, content, match in (
        ("notes.txt", "", tmp_path.name),
        ("a.parquet", "not parquet", tmp_path.name),
        ("a.csv", "image,mos\n", r"a\.csv, a\.parquet"),
    ):
        (tmp_path / name).write_text(content)
        refused(match, load_folder, tmp_path)


# --- check_rows ---


def test_sound_rows_pass_and_generators_are_not_used(tmp_path):
    before = random.getstate(), np.random.get_state()[1].copy()
    (tmp_path / "broken.png").write_bytes(b"not an image")  # nothing is decoded
    for dataset in (
        _dataset(drop=("degraded_image",)),
        _dataset(degraded_image=[None] * 3),
        _dataset(mos=[1, 5, 3]),
        _several([[_image()], [_image(), _image()], [_image()]], degraded_images=[[_image()], None, []]),
        _dataset(image=[str(tmp_path / "broken.png")] * 3),
    ):
        _check(dataset)
    check_rows(_dataset(mos=[0.0, 50.0, 100.0]), score_min=0, score_max=100)
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_rows_are_numbered_as_the_caller_sees_them(tmp_path):
    _image().save(tmp_path / "a.png")
    columns = {"prompt": ["q"] * 2500, "image": [str(tmp_path / "a.png")] * 2500, "image_id": ["a"] * 2500}
    dataset = _dataset(drop=("degraded_image",), mos=[9.0 if n == 2111 else 1.0 for n in range(2500)], **columns)
    for rows, number in ((range(2500), 2111), (range(2499, -1, -1), 388), ([2111, 0], 0)):
        refused(f"Row {number}, column `mos`", _check, dataset.select(rows))


REFUSED = {
    "no image": (lambda: _dataset(drop=["image"]), "`image` or an `images`"),
    "both": (lambda: _dataset(images=[[_image()]] * 3), "`image` or an `images`"),
    "mixed": (lambda: _dataset(drop=["degraded_image"], degraded_images=[[_image()]] * 3), "`degraded_images`"),
    "score as text": (lambda: _dataset(mos=["good", "bad", "good"]), "Row 0.*'good'"),
    "empty id": (lambda: _dataset(image_id=["a", None, "c"]), "Row 1, column `image_id`"),
    "empty image": (lambda: _dataset(image=[_image(), _image(), None]), "Row 2, column `image`"),
    "empty images": (lambda: _several([[_image()], [], [_image()]]), "Row 1, column `images`"),
    "one of the images": (lambda: _several([["a.png"], ["b.png"], ["c.png", None]]), "Row 2, column `images`"),
    "no rows": (lambda: _dataset().select([]), "no rows"),
}
for name in ("prompt", "mos", "image_id"):
    REFUSED[f"no {name}"] = (lambda name=name: _dataset(drop=[name]), f"{name}, found degraded_image, image")
for value in (math.nan, None, math.inf, 0.99, 5.01, -3.0, 70.0):
    REFUSED[f"mos {value}"] = (lambda v=value: _dataset(mos=[1.0, v, 5.0]), r"Row 1, column `mos`.*\[1, 5\]")
for column, cell, feature in (("image", "a.png", r"Image\(\)"), ("images", ["a.png"], r"List\(Image\(\)\)")):
    REFUSED[f"text in {column}"] = (
        lambda c=column, v=cell: _dataset(drop=("image", "degraded_image")).add_column(c, [v] * 3),
        rf"Column `{column}`.*{feature}",
    )
for views in (["e.png"], ["e.png", None], ["e.png"] * 3):
    REFUSED[f"views {views} of 2 images"] = (
        lambda v=views: _several([["a.png"], ["b.png", "c.png"], ["d.png"]], degraded_images=[["f.png"], v, None]),
        "Row 1, column `degraded_images`.* 2 images",
    )


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_columns_and_cells_are_named(case):
    make, match = REFUSED[case]
    refused(match, _check, make())


def test_pairs_need_the_same_size():
    check_pair(_image(), _image(), "row 3")
    check_pair(_image(), None, "row 3")
    refused(r"row 3 \(a\.jpg\).* 8 x 6 .* 6 x 8", check_pair, _image(), _image(size=(6, 8)), "row 3 (a.jpg)")
