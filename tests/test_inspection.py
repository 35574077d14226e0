import io
import os
import struct
import unicodedata
import zlib

import PIL
import pytest
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from iqa_layouts import write_image
from q_hawkeye_trl.data.degradations import pixel_hash
from q_hawkeye_trl.data.images import load_image
from q_hawkeye_trl.data.inspection import inspect_images, read_image_file
from q_hawkeye_trl.data.labels import EmbeddedImage


def _inspect(images, folder, journal, **options):
    return list(inspect_images([str(image) for image in images], folder, journal, **options))


@pytest.fixture
def journal(tmp_path):
    return tmp_path / "journal" / "inspected.jsonl"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


@pytest.mark.parametrize("workers", [1, 3])
def test_sound_images_are_hashed_in_order(folder, journal, workers):
    paths = [folder / f"{n}.png" for n in range(20)]
    for number, path in enumerate(paths):
        write_image(path, number)
    ticks = []
    findings = _inspect(paths, folder, journal, workers=workers, progress=lambda: ticks.append(1))
    assert [finding.key for finding in findings] == [str(path) for path in paths]
    assert [finding.pixels for finding in findings] == [pixel_hash(load_image(path)) for path in paths]
    assert len(ticks) == 20


def test_the_hash_is_of_the_upright_pixels_whatever_the_container(folder, journal):
    write_image(folder / "a.png", 7)
    image = load_image(folder / "a.png")
    image.save(folder / "same.bmp")
    turned, exif = image.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    turned.save(folder / "turned.png", exif=exif)
    findings = _inspect([folder / "a.png", folder / "same.bmp", folder / "turned.png"], folder, journal)
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
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "inside.png").symlink_to(folder / "good.jpg")
    (folder / "broken.png").symlink_to(folder / "gone.png")
    long = "x" * 300 + ".png"
    names = ["good.jpg", "truncated.jpg", "bomb.png", "large.png", "text.jpg", "empty.png", "dir.png", "pipe.png"]
    names += ["link.png", "inside.png", "broken.png", "gone.png", long, "zero\0byte.png", "../outside.png"]
    found = _inspect([f"{folder}/{name}" for name in names], folder, journal)
    assert dict(zip(names, [finding.fault for finding in found], strict=True)) == {
        "good.jpg": None,
        "truncated.jpg": "unreadable",
        "bomb.png": "unreadable",
        "large.png": "unreadable",
        "text.jpg": "unreadable",
        "empty.png": "unreadable",
        "dir.png": "missing",
        "pipe.png": "missing",
        "link.png": "outside",
        "inside.png": None,
        "broken.png": "missing",
        "gone.png": "missing",
        long: "missing",
        "zero\0byte.png": "missing",
        "../outside.png": "outside",
    }
    assert all(finding.reason for finding in found if finding.fault)
    assert "truncated" in found[1].reason.lower()
    assert found[4].reason == "cannot identify image file"
    assert "10000 x 10000 pixels" in found[3].reason
    assert str(tmp_path / "outside.png") in found[8].reason


def test_a_folder_reached_by_a_link_is_not_outside(folder, journal, tmp_path):
    write_image(folder / "a.png", 1)
    (tmp_path / "alias").symlink_to(folder)
    assert _inspect([tmp_path / "alias" / "a.png"], tmp_path / "alias", journal)[0].fault is None


def test_unicode_and_long_names_are_read(folder, journal):
    names = [
        "ñandú 図.png",
        unicodedata.normalize("NFD", "é.png"),
        "x" * 251 + ".png",
        "a\nb.png",
        os.fsdecode(b"\xff.png"),
    ]
    for number, name in enumerate(names):
        write_image(folder / name, number)
    first = _inspect([folder / name for name in names], folder, journal)
    assert [finding.fault for finding in first] == [None] * 5
    assert _inspect([folder / name for name in names], folder, journal) == first


def test_what_was_found_is_not_opened_again_unless_it_changed(folder, journal, monkeypatch):
    for number in range(3):
        write_image(folder / f"{number}.png", number)
    paths = [folder / f"{number}.png" for number in range(3)]
    first = _inspect(paths, folder, journal)
    opened = []
    monkeypatch.setattr(
        "q_hawkeye_trl.data.inspection.load_image", lambda source: opened.append(source) or load_image(source)
    )
    assert _inspect(paths, folder, journal) == first
    assert opened == []
    write_image(paths[1], 9)
    os.utime(paths[1], ns=(1, 1))
    again = _inspect(paths, folder, journal)
    assert opened == [str(paths[1])]
    assert again[1].pixels != first[1].pixels
    assert again[0] == first[0]


def test_missing_images_are_looked_for_again(folder, journal):
    assert _inspect([folder / "a.png"], folder, journal)[0].fault == "missing"
    write_image(folder / "a.png", 1)
    assert _inspect([folder / "a.png"], folder, journal)[0].fault is None


@pytest.mark.parametrize(
    "damage", [lambda t: t[:-7], lambda t: t + '["half', lambda t: t + "\x00\x00\n", lambda t: "{}\n" + t]
)
def test_a_half_written_line_costs_that_line_only(folder, journal, damage):
    paths = [folder / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        write_image(path, number)
    first = _inspect(paths, folder, journal)
    journal.write_text(damage(journal.read_text()))
    assert _inspect(paths, folder, journal) == first
    lines = journal.read_text().splitlines()
    assert len(lines) == 4  # header and three findings: nothing twice, nothing broken
    assert _inspect(paths, folder, journal) == first


def test_findings_of_another_pillow_are_dropped(folder, journal):
    write_image(folder / "a.png", 1)
    first = _inspect([folder / "a.png"], folder, journal)
    header, finding = journal.read_text().splitlines()
    journal.write_text(
        header.replace(PIL.__version__, "1.0") + "\n" + finding.replace(first[0].pixels, "0" * 32) + "\n"
    )
    assert _inspect([folder / "a.png"], folder, journal) == first


def test_a_folder_whose_name_begins_alike_is_outside(folder, journal):
    other = folder.with_name(folder.name + "-other")
    write_image(other / "a.png", 1)
    assert _inspect([other / "a.png"], folder, journal)[0].fault == "outside"


def test_images_inside_tables(tmp_path, journal):
    for number in range(2):
        write_image(tmp_path / f"{number}.png", number)
    contents = [(tmp_path / f"{number}.png").read_bytes() for number in range(2)] + [b"not an image"]
    table = Dataset.from_dict({"image": [{"bytes": data, "path": None} for data in contents]})
    table = table.cast_column("image", ImageFeature(decode=False))
    images = [EmbeddedImage(table, row, f"row-{row}") for row in range(3)]
    findings = list(inspect_images(images, tmp_path, journal))
    assert [finding.fault for finding in findings] == [None, None, "unreadable"]
    assert findings[1].pixels == pixel_hash(load_image(Image.open(io.BytesIO(contents[1]))))
    assert read_image_file(images[0], findings[0]) == contents[0]


def test_a_file_that_changed_meanwhile_is_not_copied(folder, journal):
    write_image(folder / "a.png", 1)
    finding = _inspect([folder / "a.png"], folder, journal)[0]
    assert read_image_file(str(folder / "a.png"), finding) == (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"a\.png has changed"):
        read_image_file(str(folder / "a.png"), finding)
