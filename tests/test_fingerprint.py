"""The fingerprint of the data: it follows the content, and nothing else."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Image, List, load_from_disk
from PIL import Image as PILImage

from q_hawkeye_trl.data.folder import load_folder
from q_hawkeye_trl.run_facts.fingerprint import data_fingerprint, describe_data
from q_hawkeye_trl.text import quality_messages


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 10, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        PILImage.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def rows_of(folder, **changed) -> Dataset:
    columns = {
        "prompt": [quality_messages()] * 6,
        "image": [str(folder / f"{number}.png") for number in range(6)],
        "image_id": [f"{number}.png" for number in range(6)],
        "mos": [1.5, 2.0, 2.5, 3.0, 3.5, 4.0],
    }
    return Dataset.from_dict(columns | changed).cast_column("image", Image())


def sha(dataset, **options) -> str:
    return data_fingerprint(dataset, progress=False, **options)["sha256"]


def test_it_is_the_hash_that_its_description_says(pictures):
    """The oracle: rows with digests in place of images, as sorted JSON, written out by hand."""
    total = hashlib.sha256(b'["1", ["image", "image_id", "mos"]]')
    for number, mos in enumerate([1.5, 2.0, 2.5, 3.0, 3.5, 4.0]):
        file = hashlib.sha256((pictures / f"{number}.png").read_bytes()).hexdigest()
        row = f'{{"image": {{"image": "{file}"}}, "image_id": "{number}.png", "mos": {mos}}}'
        total.update(hashlib.sha256(row.encode()).digest())
    facts = data_fingerprint(rows_of(pictures).remove_columns("prompt"), progress=False)
    size = sum(file.stat().st_size for file in pictures.iterdir())
    assert facts == {
        "sha256": total.hexdigest(),
        "rows": 6,
        "columns": ["image", "image_id", "mos"],
        "images": 6,
        "image_bytes": size,
    }


def test_neither_path_nor_cache_nor_storage_matters(pictures, tmp_path):
    here = sha(rows_of(pictures))
    shutil.copytree(pictures, tmp_path / "elsewhere")
    assert sha(rows_of(tmp_path / "elsewhere")) == here
    DatasetDict({"train": rows_of(pictures)}).save_to_disk(tmp_path / "saved")  # images in the table
    embedded = load_from_disk(str(tmp_path / "saved"))["train"]
    shutil.rmtree(pictures)
    assert sha(embedded) == here
    assert sha(load_folder(tmp_path / "saved", "train")) == here  # its own image feature


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_the_number_of_readers_does_not_matter(pictures, workers, monkeypatch):
    monkeypatch.setattr("q_hawkeye_trl.run_facts.fingerprint._ROWS", 1 + workers)  # nor that of rows at a time
    assert sha(rows_of(pictures), workers=workers) == sha(rows_of(pictures))


def test_columns_formats_and_history_do_not_matter(pictures):
    dataset = rows_of(pictures)
    same = dataset.select(range(5, -1, -1)).select(range(5, -1, -1)).with_format("torch")
    assert sha(same) == sha(dataset)
    assert sha(dataset.select_columns(["mos", "image", "prompt", "image_id"])) == sha(dataset)
    assert dataset._fingerprint != same._fingerprint


def test_a_changed_mos_pixel_prompt_or_order_shows(pictures):
    dataset = rows_of(pictures)
    found = {"as it is": sha(dataset), "order": sha(dataset.select([1, 0, 2, 3, 4, 5]))}
    found["a row less"] = sha(dataset.select(range(5)))
    found["mos"] = sha(rows_of(pictures, mos=[1.5, 2.0, 2.5, 3.0, 3.5, 4.0 + 1e-12]))
    found["mos lost"] = sha(rows_of(pictures, mos=[1.5, 2.0, 2.5, 3.0, 3.5, None]))
    found["mos not a number"] = sha(rows_of(pictures, mos=[1.5, 2.0, 2.5, 3.0, 3.5, float("nan")]))
    found["image_id"] = sha(rows_of(pictures, image_id=[f"{number}.jpg" for number in range(6)]))
    found["prompt"] = sha(rows_of(pictures, prompt=[[{"role": "user", "content": "Rate it."}]] * 6))
    found["column"] = sha(dataset.add_column("mos_std", [0.0] * 6))
    pixels = np.asarray(PILImage.open(pictures / "3.png")).copy()
    pixels[0, 0, 0] ^= 1
    PILImage.fromarray(pixels).save(pictures / "3.png")
    found["pixel"] = sha(rows_of(pictures))
    assert len(set(found.values())) == len(found), found


def test_images_that_change_places_show(pictures):
    before = sha(rows_of(pictures))
    (pictures / "0.png").rename(pictures / "swap")
    (pictures / "1.png").rename(pictures / "0.png")
    (pictures / "swap").rename(pictures / "1.png")
    assert sha(rows_of(pictures)) != before


def test_lists_of_images_and_rows_without_a_view(pictures):
    files = [str(pictures / f"{number}.png") for number in range(4)]
    columns = {"images": [files[:2], files[2:]], "degraded_images": [files[1:3], None], "mos": [1.0, 2.0]}
    dataset = Dataset.from_dict(columns)
    for column in ("images", "degraded_images"):
        dataset = dataset.cast_column(column, List(Image()))
    facts = data_fingerprint(dataset, progress=False)
    assert facts["images"] == 6
    columns["degraded_images"] = [None, files[1:3]]
    moved = (
        Dataset.from_dict(columns).cast_column("images", List(Image())).cast_column("degraded_images", List(Image()))
    )
    assert sha(moved) != facts["sha256"]


def test_an_empty_set_has_a_fingerprint(pictures):
    facts = data_fingerprint(rows_of(pictures).select([]), progress=False)
    assert (facts["rows"], facts["images"], facts["image_bytes"]) == (0, 0, 0)


def test_a_missing_image_is_told_and_does_not_end_the_run(pictures):
    dataset = rows_of(pictures)
    (pictures / "2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"2\.png"):
        data_fingerprint(dataset, progress=False)
    facts = describe_data(dataset, progress=False)
    assert facts["sha256"] is None
    assert facts["rows"] == 6
    assert "2.png" in facts["reason"]


def test_a_stream_has_none_and_is_not_read():
    def rows():
        raise AssertionError("read")
        yield

    from datasets import IterableDataset

    facts = describe_data(IterableDataset.from_generator(rows))
    assert facts["sha256"] is None
    assert "IterableDataset" in json.dumps(facts)
