import json
import math
import random

import datasets
import numpy as np
import pytest
from datasets import Dataset, DatasetDict, List
from datasets import Image as ImageFeature
from PIL import Image

from q_hawkeye_trl.data.folder import check_pair, check_rows, load_folder
from q_hawkeye_trl.text import quality_messages


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def _image(number=0, size=(8, 6)):
    return Image.new("RGB", size, (number * 10, 0, 0))


def _columns(rows=3):
    return {
        "prompt": [quality_messages()] * rows,
        "image": [_image(n) for n in range(rows)],
        "degraded_image": [_image(n + 1) if n else None for n in range(rows)],
        "mos": [1.0 + n for n in range(rows)],
        "image_id": [f"{n}.png" for n in range(rows)],
    }


def _dataset(drop=(), **changes):
    columns = {**_columns(), **changes}
    columns = {name: values for name, values in columns.items() if name not in drop}
    dataset = Dataset.from_dict(columns)
    for name in ("image", "degraded_image"):
        if name in columns:
            dataset = dataset.cast_column(name, ImageFeature())
    for name in ("images", "degraded_images"):
        if name in columns:
            dataset = dataset.cast_column(name, List(ImageFeature()))
    return dataset


def _several(images, degraded=None):
    columns = {"images": images} if degraded is None else {"images": images, "degraded_images": degraded}
    return _dataset(drop=("image", "degraded_image"), **columns)


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
    with pytest.raises(ValueError, match=r"without splits.*'train'"):
        load_folder(tmp_path, "train")


def test_splits_are_named_chosen_and_refused(tmp_path):
    DatasetDict(train=_dataset(), test=_dataset(mos=[5.0, 5.0, 5.0])).save_to_disk(tmp_path)
    assert load_folder(tmp_path, "test")["mos"][:] == [5, 5, 5]
    with pytest.raises(ValueError, match="splits train, test: name one"):
        load_folder(tmp_path)
    with pytest.raises(ValueError, match="no split 'dev'; its splits are train, test"):
        load_folder(tmp_path, "dev")


def test_parquet_shards_make_one_split(tmp_path):
    for shard in range(2):
        _dataset(mos=[1.0, 2.0, 3.0 + shard]).to_parquet(tmp_path / f"train-0000{shard}-of-00002.parquet")
    dataset = load_folder(tmp_path)
    _check(dataset)
    assert dataset["mos"][:] == [1, 2, 3, 1, 2, 4]
    assert isinstance(dataset.features["image"], ImageFeature)


def _files(folder, count=3):
    (folder / "pictures").mkdir()
    for number in range(count):
        _image(number).save(folder / "pictures" / f"{number}.png")


def test_a_csv_beside_images_gets_prompt_and_row_numbers(tmp_path):
    _files(tmp_path)
    (tmp_path / "labels.csv").write_text(
        "image,degraded_image,mos\npictures/0.png,pictures/1.png,1.5\npictures/2.png,,4\n"
    )
    with pytest.warns(UserWarning, match="no `image_id` column"):
        dataset = load_folder(tmp_path)
    _check(dataset)
    assert dataset["mos"][:] == [1.5, 4]
    assert dataset["image_id"][:] == ["row-0", "row-1"]
    assert dataset[0]["prompt"] == quality_messages()
    assert dataset[1]["image"].getpixel((0, 0)) == (20, 0, 0)
    assert dataset[1]["degraded_image"] is None


def test_json_lines_with_several_images(tmp_path):
    _files(tmp_path)
    rows = [
        {"images": ["pictures/0.png", "pictures/1.png"], "degraded_images": None, "mos": 2.0, "image_id": "a"},
        {"images": ["pictures/2.png"], "degraded_images": ["pictures/0.png"], "mos": 3.0, "image_id": "b"},
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    dataset = load_folder(tmp_path, "train")
    _check(dataset)
    assert [len(images) for images in dataset["images"]] == [2, 1]
    assert dataset[0]["degraded_images"] is None
    assert dataset[1]["degraded_images"][0].size == (8, 6)
    assert dataset[1]["images"][0].getpixel((0, 0)) == (20, 0, 0)


def test_an_image_folder_with_metadata_is_left_to_datasets(tmp_path):
    _files(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,mos,image_id\npictures/0.png,2,a\npictures/2.png,3,b\n")
    dataset = load_folder(tmp_path)
    _check(dataset)
    assert dict(zip(dataset["image_id"], dataset["mos"], strict=True)) == {"a": 2, "b": 3}


def test_a_prompt_of_ones_own_is_kept(tmp_path):
    own = [[{"role": "user", "content": "How sharp?"}]] * 3
    _dataset(prompt=own).save_to_disk(tmp_path)
    assert load_folder(tmp_path)["prompt"][:] == own


def test_missing_images_are_counted_and_named(tmp_path):
    _files(tmp_path)
    (tmp_path / "labels.csv").write_text("image,mos\npictures/0.png,1\npictures/8.png,2\npictures/9.png,3\n")
    with pytest.raises(FileNotFoundError, match=r"column `image`: 2 of 3 files are missing \(.*8\.png"):
        load_folder(tmp_path)


def test_folders_that_hold_no_dataset_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="can't be read as a dataset"):
        load_folder(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=f"{tmp_path.name} can't be read as a dataset"):
        load_folder(tmp_path)
    (tmp_path / "a.csv").write_text("image,mos\n")
    with pytest.raises(ValueError, match=r"mixes formats \(a\.csv, a\.parquet\)"):
        load_folder(tmp_path)


# --- check_rows ---


def test_sound_rows_pass_and_generators_stay_untouched():
    before = random.getstate(), np.random.get_state()[1].copy()
    _check(_dataset())
    _check(_dataset(drop=("degraded_image",)))
    _check(_dataset(degraded_image=[None] * 3))
    _check(_several([[_image()], [_image(), _image()], [_image()]], [[_image()], None, []]))
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_images_are_not_decoded(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    _check(_dataset(image=[str(tmp_path / "broken.png")] * 3))


@pytest.mark.parametrize("value", [math.nan, None, math.inf, 0.99, 5.01, -3.0, 70.0])
def test_a_score_out_of_range_is_named_by_row(value):
    with pytest.raises(ValueError, match="Row 1, column `mos`: expected a number in"):
        _check(_dataset(mos=[1.0, value, 5.0]))


def test_the_range_is_the_callers_and_its_ends_belong_to_it():
    check_rows(_dataset(mos=[0.0, 50.0, 100.0]), score_min=0, score_max=100)
    _check(_dataset(mos=[1, 5, 3]))
    with pytest.raises(ValueError, match=r"Row 0.*'good'"):
        _check(_dataset(mos=["good", "bad", "good"]))


def test_rows_are_numbered_as_the_caller_sees_them():
    mos = [1.0] * 2500
    mos[2111] = 9.0
    columns = {"prompt": ["q"] * 2500, "image": [None] * 2500, "mos": mos, "image_id": ["a"] * 2500}
    dataset = Dataset.from_dict(columns).cast_column("image", ImageFeature())
    with pytest.raises(ValueError, match="Row 0, column `image`"):
        _check(dataset)
    with pytest.raises(ValueError, match="Row 0, column `mos`"):
        _check(dataset.select([2111, 0]))


def test_a_late_row_keeps_its_number(tmp_path):
    _image().save(tmp_path / "a.png")
    mos = [1.0] * 2500
    mos[2111] = 9.0
    dataset = _dataset(
        drop=("degraded_image",),
        prompt=["q"] * 2500,
        image=[str(tmp_path / "a.png")] * 2500,
        mos=mos,
        image_id=["a"] * 2500,
    )
    with pytest.raises(ValueError, match="Row 2111, column `mos`"):
        _check(dataset)
    with pytest.raises(ValueError, match="Row 388, column `mos`"):
        _check(dataset.select(range(2499, -1, -1)))


@pytest.mark.parametrize("column", ["prompt", "mos", "image_id"])
def test_missing_columns_are_named_beside_what_was_found(column):
    with pytest.raises(ValueError, match=f"Expected the columns {column}, found degraded_image, image"):
        _check(_dataset(drop=(column,)))


def test_image_columns_must_go_together():
    with pytest.raises(ValueError, match="either an `image` or an `images`"):
        _check(_dataset(drop=("image",)))
    with pytest.raises(ValueError, match="either an `image` or an `images`"):
        _check(_dataset(images=[[_image()]] * 3))
    with pytest.raises(ValueError, match="`degraded_images`"):
        _check(_dataset(drop=("degraded_image",), degraded_images=[[_image()]] * 3))


def test_text_in_an_image_column_is_refused():
    text = _dataset(drop=("image", "degraded_image")).add_column("image", ["a.png"] * 3)
    with pytest.raises(ValueError, match=r"Column `image`: expected the feature Image\(\)"):
        _check(text)
    text = text.remove_columns("image").add_column("images", [["a.png"]] * 3)
    with pytest.raises(ValueError, match=r"Column `images`: expected the feature List\(Image\(\)\)"):
        _check(text)


def test_empty_values_are_named():
    with pytest.raises(ValueError, match="Row 1, column `image_id`"):
        _check(_dataset(image_id=["a", None, "c"]))
    with pytest.raises(ValueError, match="Row 2, column `image`: an image is missing"):
        _check(_dataset(image=[_image(), _image(), None]))
    with pytest.raises(ValueError, match="Row 1, column `images`: an image is missing"):
        _check(_several([[_image()], [], [_image()]]))
    with pytest.raises(ValueError, match="Row 2, column `images`: an image is missing"):
        _check(_several([["a.png"], ["b.png"], ["c.png", None]]))
    with pytest.raises(ValueError, match="no rows"):
        _check(_dataset().select([]))


def test_views_must_match_the_images_of_their_row_in_number():
    images = [["a.png"], ["b.png", "c.png"], ["d.png"]]
    for degraded in (["e.png"], ["e.png", None], ["e.png"] * 3):
        with pytest.raises(
            ValueError, match="Row 1, column `degraded_images`: expected a view of each of the 2 images"
        ):
            _check(_several(images, [["f.png"], degraded, None]))


# --- check_pair ---


def test_pairs_need_the_same_size():
    check_pair(_image(), _image(), "row 3")
    check_pair(_image(), None, "row 3")
    with pytest.raises(ValueError, match=r"row 3 \(a\.jpg\): the image is 8 x 6 and its degraded view 6 x 8"):
        check_pair(_image(), _image(size=(6, 8)), "row 3 (a.jpg)")


def test_the_projects_prompt_is_not_put_to_another_scale(tmp_path):
    Dataset.from_dict({"image_id": ["a"], "mos": [50.0]}).save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match=r"no `prompt` column.*between 1 and 5, not between 0 and 100"):
        load_folder(tmp_path / "data", scale=(0.0, 100.0))
    assert "prompt" in load_folder(tmp_path / "data").column_names
