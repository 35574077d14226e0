import os
import struct
import unicodedata
import zlib

import PIL
import pytest
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from iqa_layouts import refused, write_image, write_images
from q_hawkeye_trl.data.degradations import pixel_hash
from q_hawkeye_trl.data.images import load_image
from q_hawkeye_trl.data.inspection import inspect_images, read_image_file
from q_hawkeye_trl.data.labels import EmbeddedImage


def _inspect(images, folder, journal, **options):
    return list(inspect_images([str(image) for image in images], folder, journal, **options))


def _written(folder, count):
    write_images(folder, [f"{n}.png" for n in range(count)])
    return [folder / f"{n}.png" for n in range(count)]


@pytest.fixture
def journal(tmp_path):
    return tmp_path / "journal" / "inspected.jsonl"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


@pytest.mark.parametrize("workers", [1, 3])
def test_sound_images_are_hashed_in_order(folder, journal, workers):
    paths, ticks = _written(folder, 20), []
    findings = _inspect(paths, folder, journal, workers=workers, progress=lambda: ticks.append(1))
    assert [finding.key for finding in findings] == [str(path) for path in paths]
    assert [finding.pixels for finding in findings] == [pixel_hash(load_image(path)) for path in paths]
    assert len(ticks) == 20


def test_the_hash_is_of_the_upright_pixels_whatever_the_container(folder, journal):
    write_image(folder / "a.png", 7)
    image, exif = load_image(folder / "a.png"), Image.Exif()
    image.save(folder / "same.bmp")
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=exif)
    findings = _inspect([folder / name for name in ("a.png", "same.bmp", "turned.png")], folder, journal)
    assert len({finding.pixels for finding in findings}) == 1


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width, height, rows):
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _bomb():
    """20,000 x 20,000 grey pixels of 0 in some kilobytes."""
    packer = zlib.compressobj(9)
    return _png(20_000, 20_000, b"".join(packer.compress(bytes(20_001)) for _ in range(200)) + packer.flush())


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_each_kind_of_faulty_file_is_named(folder, journal, tmp_path):
    write_image(folder / "good.jpg", 1)
    good = (folder / "good.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(good[: len(good) // 2])
    (folder / "bomb.png").write_bytes(_bomb())
    (folder / "large.png").write_bytes(_png(10_000, 10_000, b""))  # Pillow itself only warns
    (folder / "text.jpg").write_text("not an image")
    (folder / "empty.png").touch()
    (folder / "dir.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    write_image(tmp_path / "outside.png", 2)
    write_image(tmp_path / "images-other" / "a.png", 3)  # a folder whose name begins alike
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "inside.png").symlink_to(folder / "good.jpg")
    (folder / "broken.png").symlink_to(folder / "gone.png")
    expected = {
        None: ["good.jpg", "inside.png"],
        "unreadable": ["truncated.jpg", "bomb.png", "large.png", "text.jpg", "empty.png"],
        "missing": ["dir.png", "pipe.png", "broken.png", "gone.png", "x" * 300 + ".png", "zero\0byte.png"],
        "outside": ["link.png", "../outside.png", "../images-other/a.png"],
    }
    faults = {name: fault for fault, names in expected.items() for name in names}
    found = dict(zip(faults, _inspect([f"{folder}/{name}" for name in faults], folder, journal), strict=True))
    assert {name: finding.fault for name, finding in found.items()} == faults
    assert all(finding.reason for finding in found.values() if finding.fault)
    assert "truncated" in found["truncated.jpg"].reason.lower()
    assert found["text.jpg"].reason == "cannot identify image file"
    assert "10000 x 10000 pixels" in found["large.png"].reason
    assert str(tmp_path / "outside.png") in found["link.png"].reason


def test_a_folder_reached_by_a_link_is_not_outside(folder, journal, tmp_path):
    write_image(folder / "a.png", 1)
    (tmp_path / "alias").symlink_to(folder)
    assert _inspect([tmp_path / "alias" / "a.png"], tmp_path / "alias", journal)[0].fault is None


def test_unicode_and_long_names_are_read(folder, journal):
    accented = unicodedata.normalize("NFD", "é.png")
    names = ["ñandú 図.png", accented, "x" * 251 + ".png", "a\nb.png", os.fsdecode(b"\xff.png")]
    write_images(folder, names)
    first = _inspect([folder / name for name in names], folder, journal)
    assert [finding.fault for finding in first] == [None] * 5
    assert _inspect([folder / name for name in names], folder, journal) == first


def test_what_was_found_is_not_opened_again_unless_it_changed(folder, journal, monkeypatch):
    paths, opened = [*_written(folder, 3), folder / "late.png"], []
    first = _inspect(paths, folder, journal)
    assert first[3].fault == "missing"
    monkeypatch.setattr(
        "q_hawkeye_trl.data.inspection.load_image", lambda source: opened.append(source) or load_image(source)
    )
    assert _inspect(paths, folder, journal) == first
    assert opened == []
    write_image(paths[1], 9)
    os.utime(paths[1], ns=(1, 1))
    write_image(paths[3], 10)
    again = _inspect(paths, folder, journal)
    assert opened == [str(paths[1]), str(paths[3])]
    assert again[1].pixels != first[1].pixels
    assert again[3].fault is None
    assert again[0] == first[0]


@pytest.mark.parametrize(
    "damage", [lambda t: t[:-7], lambda t: t + '["half', lambda t: t + "\x00\x00\n", lambda t: "{}\n" + t]
)
def test_a_half_written_line_costs_that_line_only(folder, journal, damage):
    paths = _written(folder, 3)
    first = _inspect(paths, folder, journal)
    journal.write_text(damage(journal.read_text()))
    assert _inspect(paths, folder, journal) == first
    assert len(journal.read_text().splitlines()) == 4  # header and three findings: nothing twice, nothing broken
    assert _inspect(paths, folder, journal) == first


def test_findings_of_another_pillow_are_dropped(folder, journal):
    paths = _written(folder, 1)
    first = _inspect(paths, folder, journal)
    text = journal.read_text().replace(PIL.__version__, "1.0").replace(first[0].pixels, "0" * 32)
    journal.write_text(text)
    assert _inspect(paths, folder, journal) == first


def test_images_inside_tables(tmp_path, journal):
    contents = [path.read_bytes() for path in _written(tmp_path, 2)] + [b"not an image"]
    table = Dataset.from_dict({"image": [{"bytes": data, "path": None} for data in contents]})
    table = table.cast_column("image", ImageFeature(decode=False))
    images = [EmbeddedImage(table, row, f"row-{row}") for row in range(3)]
    findings = list(inspect_images(images, tmp_path, journal))
    assert [finding.fault for finding in findings] == [None, None, "unreadable"]
    assert findings[1].pixels == pixel_hash(load_image(contents[1]))
    assert read_image_file(images[0], findings[0]) == contents[0]


def test_a_file_that_changed_meanwhile_is_not_copied(folder, journal):
    (path,) = _written(folder, 1)
    (finding,) = _inspect([path], folder, journal)
    assert read_image_file(str(path), finding) == path.read_bytes()
    path.write_bytes(b"other")
    refused(r"0\.png has changed", read_image_file, str(path), finding)
