"""Which images are found where, under which names, and what is said of those that can't be read."""

import io
import os

import datasets
import pytest
from PIL import Image

from q_hawkeye_trl.scoring.sources import FileSource, MemorySource, find_images


@pytest.fixture
def tree(tmp_path):
    for name in ("b.png", "a.JPG", "sub/c.webp", ".hidden/d.png", ".e.png", "sub/deep/f.tif"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), "red").save(path, None if path.suffix else "PNG")
    (tmp_path / "labels.csv").write_text("image,mos\nb.png,3\n")
    (tmp_path / "notes.txt").write_text("x")
    return tmp_path


def names(paths, **options) -> list[str]:
    return [source.name for source in find_images([str(path) for path in paths], **options)]


def test_a_folder_is_searched_through_and_label_files_beside_images_are_no_dataset(tree):
    expected = ["a.JPG", "b.png", "sub/c.webp", "sub/deep/f.tif"]
    assert names([tree]) == [str(tree / name) for name in expected]


def test_globs_files_and_order(tree):
    assert names([tree / "*.png"]) == [str(tree / "b.png")]
    assert names([tree / "**" / "*.[wt]*"]) == [str(tree / "sub/c.webp"), str(tree / "sub/deep/f.tif")]
    assert names([tree / "b.png", tree / "a.JPG"]) == [str(tree / "b.png"), str(tree / "a.JPG")]


def test_what_is_found_twice_stands_there_once(tree, monkeypatch):
    monkeypatch.chdir(tree)
    assert names(["b.png", "./b.png", tree / "b.png", "."]) == ["b.png", "./a.JPG", "./sub/c.webp", "./sub/deep/f.tif"]


def test_a_name_with_the_characters_of_a_glob_is_a_file_first(tmp_path):
    path = tmp_path / "a[1].png"
    Image.new("L", (4, 4)).save(path)
    assert names([path]) == [str(path)]


def test_a_file_that_is_named_is_taken_whatever_its_ending(tree):
    assert names([tree / "notes.txt"]) == [str(tree / "notes.txt")]


@pytest.mark.parametrize(
    ("path", "message"),
    [("gone.png", "There is no file or folder"), ("*.gif", "No image file matches"), ("empty", "no file")],
)
def test_what_is_not_there_is_an_error_that_names_it(tree, path, message):
    (tree / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=message) as raised:
        find_images([str(tree / path)])
    assert path in str(raised.value)


def test_no_paths_are_an_error():
    with pytest.raises(ValueError, match="nothing to score"):
        find_images([])


def test_a_name_that_is_no_valid_text_gets_one(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    Image.new("L", (4, 4)).save(path)
    (source,) = find_images([str(tmp_path)])
    assert source.name.endswith("caf\\udce9.png")
    assert source.load()[0].size == (4, 4)


def rows(tmp_path, images, **columns) -> str:
    folder = tmp_path / "data"
    features = datasets.Features({"image": datasets.Image()} | {name: datasets.Value("string") for name in columns})
    datasets.Dataset.from_dict({"image": images, **columns}, features=features).save_to_disk(folder)
    return str(folder)


def png(color: str) -> dict:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), color).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def test_rows_of_a_datasets_folder(tmp_path, tree):
    images = [png("red"), {"bytes": None, "path": str(tree / "b.png")}, {"bytes": b"no picture", "path": None}, None]
    folder = rows(tmp_path, images, image_id=["one", "two", "three", "four"])
    sources = find_images([folder])
    assert [source.name for source in sources] == ["one", "two", "three", "four"]
    assert [source.pixels() for source in sources] == [(6, 4), (8, 6), (0, 0), (0, 1)]
    assert sources[0].load()[0].getpixel((0, 0)) == (255, 0, 0)
    assert sources[1].load()[0].size == (8, 6)
    with pytest.raises(ValueError, match=r"row 2 \(three\)"):
        sources[2].load()
    with pytest.raises(ValueError, match=r"row 3 \(four\)"):
        sources[3].load()
    stamps = [source.stamp() for source in sources]
    assert len(set(stamps)) == 4
    assert stamps[3] == "missing"


def test_parquet_files_are_a_datasets_folder_unless_images_lie_beside_them(tmp_path, tree):
    rows_of_two = datasets.Dataset.from_dict({"image_id": ["x", "y"]})
    rows_of_two = rows_of_two.add_column("image", [png("red"), png("blue")], feature=datasets.Image())
    for folder in ("flat", "hub/data"):
        (tmp_path / folder).mkdir(parents=True)
        rows_of_two.to_parquet(tmp_path / folder / "train.parquet")
    assert names([tmp_path / "flat"]) == ["x", "y"]
    assert names([tmp_path / "hub"]) == ["x", "y"]
    rows_of_two.to_parquet(tree / "scores.parquet")
    assert len(names([tree])) == 4


def test_rows_without_an_id_are_named_by_folder_and_number_and_equal_ids_stay_apart(tmp_path):
    folder = rows(tmp_path, [png("red"), png("blue")])
    assert names([folder]) == [f"{folder}#0", f"{folder}#1"]
    other = rows(tmp_path / "x", [png("red"), png("blue")], image_id=["same", "same"])
    assert names([other]) == ["same", "same"]
    assert len({source.key for source in find_images([other])}) == 2


def test_splits_of_a_datasets_folder(tmp_path):
    parts = {name: datasets.Dataset.from_dict({"image_id": [name]}) for name in ("train", "test")}
    for name in parts:
        parts[name] = parts[name].add_column("image", [png("red")], feature=datasets.Image())
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "data")
    assert names([tmp_path / "data"], split="test") == ["test"]
    with pytest.raises(ValueError, match="train, test"):
        find_images([str(tmp_path / "data")])


def test_a_datasets_folder_without_images_is_an_error(tmp_path):
    datasets.Dataset.from_dict({"picture": [1]}).save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match="picture"):
        find_images([str(tmp_path / "data")])


def test_rows_with_several_images_and_prompts_of_their_own(tmp_path):
    prompt = [{"role": "user", "content": "Which is better?"}]
    data = datasets.Dataset.from_dict(
        {
            "images": [[png("red"), png("blue")], [png("red"), None], []],
            "prompt": [prompt] * 3,
            "image_id": list("abc"),
        },
        features=datasets.Features(
            {
                "images": datasets.List(datasets.Image()),
                "prompt": [{"role": datasets.Value("string"), "content": datasets.Value("string")}],
                "image_id": datasets.Value("string"),
            }
        ),
    )
    data.save_to_disk(tmp_path / "data")
    first, second, third = find_images([str(tmp_path / "data")])
    assert [image.getpixel((0, 0)) for image in first.load()] == [(255, 0, 0), (0, 0, 255)]
    assert (first.pixels(), first.prompt) == ((48, 1), prompt)
    assert len({source.stamp() for source in (first, second, third)}) == 3
    for source, name in ((second, r"row 1 \(b\)"), (third, r"row 2 \(c\)")):
        with pytest.raises(ValueError, match=name):
            source.load()


def test_stamps_tell_a_replaced_file(tmp_path):
    path = tmp_path / "a.png"
    Image.new("L", (4, 4)).save(path)
    source = FileSource(str(path))
    before = source.stamp()
    assert source.stamp() == before
    Image.new("L", (40, 40)).save(path)
    assert source.stamp() != before
    path.unlink()
    assert source.stamp() == "missing"


def test_an_image_in_memory():
    source = MemorySource([Image.new("RGBA", (5, 3))], "image 0")
    assert (source.name, source.pixels()) == ("image 0", (5, 3))
    assert source.load()[0].mode == "RGB"
