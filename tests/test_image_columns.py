"""Every image of a user's dataset reaches the processor as the same upright RGB array, whatever holds it."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Image, IterableDataset, List, Value
from PIL import Image as PILImage

from harness import ON, build_trainer
from q_hawkeye_trl.data.degradations import degrade
from q_hawkeye_trl.data.image_columns import DecodeOnce, with_uniform_images
from tiny_models import tiny_policy

ORIENTATION = 0x0112
RAMP = np.arange(84 * 56, dtype=np.int64).reshape(56, 84)
DEEP = (RAMP * 13).astype(np.uint16)  # up to 61,139
SHALLOW = (RAMP % 256).astype(np.uint8)


@pytest.fixture
def files(tmp_path):
    """Files of four kinds and the array of each."""
    exif = PILImage.Exif()
    exif[ORIENTATION] = 6  # the first stored column is the upper edge, turned to the right
    opaque = RAMP % 2 == 1
    colour = np.stack([SHALLOW, 255 - SHALLOW, SHALLOW // 2, np.where(opaque, 255, 0).astype(np.uint8)], axis=2)
    stored = np.stack([SHALLOW.T, SHALLOW.T // 3, 255 - SHALLOW.T], axis=2)
    palette = np.stack([np.arange(256), 255 - np.arange(256), np.arange(256) // 2], axis=1).astype(np.uint8)
    indexed = PILImage.fromarray(SHALLOW)
    indexed.putpalette(palette.flatten().tolist())
    images = {
        "deep": (PILImage.fromarray(DEEP), np.repeat(np.rint(DEEP / 257).astype(np.uint8)[:, :, None], 3, axis=2)),
        "clear": (PILImage.fromarray(colour), np.where(opaque[:, :, None], colour[:, :, :3], 255).astype(np.uint8)),
        "turned": (PILImage.fromarray(stored), stored.transpose(1, 0, 2)[:, ::-1]),
        "palette": (indexed, palette[SHALLOW]),
    }
    paths = {name: str(tmp_path / f"{name}.png") for name in images}
    for name, (image, _) in images.items():
        image.save(paths[name], exif=exif if name == "turned" else None)
    return paths, {name: array for name, (_, array) in images.items()}


def file_bytes(path):
    return Path(path).read_bytes()


def opened(path):
    return PILImage.open(io.BytesIO(file_bytes(path)))


def table(cells, column="image", feature=None, **columns):
    data = Dataset.from_dict({column: cells, **columns})
    return data.cast_column(column, feature or Image())


def assert_uniform(image, array):
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), array)


SOURCES = {
    "paths": lambda paths: table(paths),
    "embedded bytes": lambda paths: table([{"bytes": file_bytes(path), "path": None} for path in paths]),
    "text column": lambda paths: Dataset.from_dict({"image": paths}),
    "bytes column": lambda paths: Dataset.from_dict({"image": [file_bytes(path) for path in paths]}),
    "undecoded feature": lambda paths: table(paths, feature=Image(decode=False)),
    "feature with a mode": lambda paths: table(paths, feature=Image(mode="RGB")),
    "transform that opens files": lambda paths: Dataset.from_dict({"path": paths}).with_transform(
        lambda batch: {"image": [PILImage.open(path) for path in batch["path"]]}
    ),
    "transform over undecoded cells": lambda paths: table(paths, feature=Image(decode=False)).with_transform(
        lambda batch: {"image": [PILImage.open(cell["path"]) for cell in batch["image"]]}
    ),
    "typed stream": lambda paths: table(paths).to_iterable_dataset(),
    "mapped stream": lambda paths: table(paths).to_iterable_dataset().map(lambda row: row),
    "untyped stream": lambda paths: IterableDataset.from_generator(
        lambda: ({"image": PILImage.open(path)} for path in paths)
    ),
    "list of decoded images": lambda paths: [{"image": opened(path)} for path in paths],
    "generator of bytes": lambda paths: ({"image": file_bytes(path)} for path in paths),
}


@pytest.mark.parametrize("source", SOURCES)
def test_any_source_gives_the_same_arrays(files, source):
    paths, arrays = files
    rows = with_uniform_images(SOURCES[source](list(paths.values())))
    rows = rows if source.startswith("generator") else with_uniform_images(rows)  # twice is as once
    seen = [rows[i] for i in range(len(rows))] if hasattr(rows, "__len__") else list(rows)
    assert len(seen) == len(arrays)
    for row, array in zip(seen, arrays.values(), strict=True):
        assert_uniform(row["image"], array)


def test_lists_of_images_and_images_in_prompts(files):
    paths, arrays = files
    two = [paths["deep"], paths["clear"]]
    prompt = [{"role": "user", "content": [{"type": "image", "image": {"path": paths["deep"], "bytes": None}}]}]
    content = {"type": Value("string"), "image": Image()}
    features = {"prompt": List({"role": Value("string"), "content": List(content)})}
    nested = Dataset.from_dict({"prompt": [prompt]}).cast(Features(features))
    for rows in (
        Dataset.from_dict({"images": [two, []]}),
        Dataset.from_dict({"images": [two, []]}).cast_column("images", List(Image())),
        [{"images": [opened(path) for path in two]}, {"images": []}],
    ):
        rows = with_uniform_images(rows)
        for image, name in zip(rows[0]["images"], ("deep", "clear"), strict=True):
            assert_uniform(image, arrays[name])
        assert rows[1]["images"] == []
    in_memory = [{"prompt": [{"role": "user", "content": [{"type": "image", "image": opened(paths["deep"])}]}]}]
    for rows in (nested, in_memory):
        assert_uniform(with_uniform_images(rows)[0]["prompt"][0]["content"][0]["image"], arrays["deep"])


def test_iterables_are_streams_for_pytorch(files):
    paths, arrays = files
    rows = with_uniform_images({"image": path} for path in paths.values())
    assert isinstance(rows, torch.utils.data.IterableDataset)
    for row, array in zip(torch.utils.data.DataLoader(rows, batch_size=None), arrays.values(), strict=True):
        assert_uniform(row["image"], array)


def test_other_columns_and_missing_images_are_kept(files):
    paths, _ = files
    rows = table([paths["deep"], None], depth=[opened(paths["deep"])] * 2, mos=[1.0, 2.0])
    seen = with_uniform_images(rows)
    assert seen[1]["image"] is None
    assert seen[0]["depth"].mode == "I;16"
    assert seen["mos"][:] == [1.0, 2.0]
    assert rows[0]["image"].mode == "I;16"  # the user's own object is unchanged
    assert with_uniform_images(None) is None


def test_a_format_stays_in_effect(files):
    paths, arrays = files
    rows = with_uniform_images(table([paths["deep"]], mos=[1.0]).with_format("numpy"))
    assert np.array_equal(rows[0]["image"], arrays["deep"])
    doubled = table([paths["deep"]], mos=[1.0]).with_transform(
        lambda batch: {**batch, "mos": [2 * value for value in batch["mos"]]}, output_all_columns=True
    )
    row = with_uniform_images(doubled)[0]
    assert row["mos"] == 2.0
    assert_uniform(row["image"], arrays["deep"])


def test_selecting_removing_mapping_and_workers_keep_the_decoding(files):
    paths, arrays = files
    rows = with_uniform_images(table(list(paths.values()), mos=[1.0, 2.0, 3.0, 4.0]))
    assert_uniform(rows.select([2, 0])[1]["image"], arrays["deep"])
    assert_uniform(rows.remove_columns("mos")[0]["image"], arrays["deep"])
    assert_uniform(rows.map(lambda row: {"mos": 0.0})[0]["image"], arrays["deep"])
    once = pickle.loads(pickle.dumps(DecodeOnce(rows)))
    loader = torch.utils.data.DataLoader(once, batch_size=2, num_workers=1, collate_fn=list)
    seen = [row for batch in loader for row in batch]
    for row, array in zip(seen, arrays.values(), strict=True):
        assert_uniform(row["image"], array)


def test_splits_by_name(files):
    paths, arrays = files
    parts = with_uniform_images({"one": table([paths["deep"]]), "two": [{"image": opened(paths["clear"])}]})
    assert_uniform(parts["one"][0]["image"], arrays["deep"])
    assert_uniform(parts["two"][0]["image"], arrays["clear"])
    splits = with_uniform_images(DatasetDict({"train": table([paths["deep"]])}))
    assert isinstance(splits, DatasetDict)
    assert_uniform(splits["train"][0]["image"], arrays["deep"])


@pytest.mark.parametrize("kind", ["table", "list", "stream"])
@pytest.mark.parametrize("cause", ["bad.png", "none.png", "mode F"])
def test_errors_name_column_row_and_file(tmp_path, kind, cause):
    PILImage.new("RGB", (4, 4)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"not an image")
    PILImage.new("F", (4, 4)).save(tmp_path / "odd.tiff")
    cells = [str(tmp_path / "good.png"), str(tmp_path / ("odd.tiff" if cause == "mode F" else cause))]
    plain = [{"degraded_image": cell} for cell in cells]
    rows = with_uniform_images(
        {
            "table": lambda: table(cells, column="degraded_image"),
            "list": lambda: plain,
            "stream": lambda: IterableDataset.from_generator(lambda: iter(plain)),
        }[kind]()
    )
    with pytest.raises((ValueError, FileNotFoundError), match=f"row 1.*degraded_image.*{cause}"):
        list(rows) if kind == "stream" else DecodeOnce(rows).__getitems__([0, 1])


@pytest.mark.parametrize("stream", [False, True], ids=["table", "stream"])
@pytest.mark.parametrize("given", [False, True], ids=["view made", "view given"])
def test_a_training_step_shows_the_processor_the_same_arrays(tmp_path, files, monkeypatch, given, stream):
    paths, arrays = files
    columns = {"mos": [2.0] * 4, "image_id": list(paths), "prompt": [[{"role": "user", "content": "Rate it."}]] * 4}
    rows = table(list(paths.values()), **columns)
    views = [np.asarray(degrade(PILImage.fromarray(array), "darken@3", seed=0)) for array in arrays.values()]
    if given:
        views = list(arrays.values())[::-1]
        rows = rows.add_column("degraded_image", list(paths.values())[::-1]).cast_column("degraded_image", Image())
    model, processor = tiny_policy("qwen2_5_vl")
    seen = []
    preprocess = processor.image_processor.preprocess

    def recorded(images, *args, **kwargs):
        seen.append([np.asarray(i) for row in images for i in (row if isinstance(row, list) else [row])])
        return preprocess(images, *args, **kwargs)

    monkeypatch.setattr(processor.image_processor, "preprocess", recorded)
    trainer = build_trainer(
        tmp_path / "run",
        model=model,
        processing_class=processor,
        train_dataset=rows.to_iterable_dataset() if stream else rows,
        **ON,
        degradations=["darken@3"],
        num_generations=2,
    )
    trainer.train()
    *originals, twins = seen
    for images, expected in (([i for call in originals for i in call], list(arrays.values())), (twins, views)):
        assert all(any(np.array_equal(image, array) for array in expected) for image in images)
        assert all(any(np.array_equal(image, array) for image in images) for array in expected)
