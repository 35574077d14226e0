"""Images of every mode and orientation, and every way in which a file can be invalid."""

import hashlib
import os
import struct
import zlib

import numpy as np
import pytest
from datasets import load_from_disk
from PIL import Image, ImageFile

from pair_sets import dataset, encoded, lines_of, make, picture, save, views_of
from q_hawkeye_trl.data.degradations import degrade
from q_hawkeye_trl.data.images import load_image
from q_hawkeye_trl.pairs.source import leads_out, read_picture


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(3), "JPEG", quality=95, exif=exif)


def grey16():
    values = np.asarray(picture(4).convert("L")).astype(np.uint16) * 257
    return Image.fromarray(values)


def transparent():
    image = picture(5).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


MODES = {
    "RGB": lambda: encoded(picture(0)),
    "L": lambda: encoded(picture(1).convert("L")),
    "1": lambda: encoded(picture(1).convert("1")),
    "P": lambda: encoded(picture(2).quantize(64)),
    "I;16": lambda: encoded(grey16()),
    "RGBA": lambda: encoded(transparent()),
    "LA": lambda: encoded(transparent().convert("LA")),
    "CMYK": lambda: encoded(picture(6).convert("CMYK"), "JPEG", quality=95),
}


def test_every_mode_gets_a_view_of_its_defined_rgb_form(tmp_path):
    files = {mode: write() for mode, write in MODES.items()}
    make(save(tmp_path / "data", dataset(list(files.values()))), tmp_path / "out", degradations=["gaussian_noise@2"])
    rows = load_from_disk(str(tmp_path / "out"))
    stored = rows.with_format("arrow")[:].column("image").to_pylist()
    for (mode, data), line, view, kept in zip(
        files.items(), lines_of(tmp_path / "out"), rows["degraded_image"], stored, strict=True
    ):
        original = load_image(data)
        assert line["mode"] == mode
        assert line["file_hash"] == hashlib.sha256(data).hexdigest()
        assert view.mode == "RGB"
        assert view.tobytes() == degrade(original, "gaussian_noise@2", line["view_seed"]).tobytes()
        assert kept["bytes"] == data


def test_views_of_turned_photographs_are_upright_and_as_large_as_the_decoded_original(tmp_path):
    images = [turned(orientation) for orientation in range(1, 9)]
    make(save(tmp_path / "data", dataset(images)), tmp_path / "out", degradations=["darken@1"])
    assert [line["orientation"] for line in lines_of(tmp_path / "out")] == list(range(1, 9))
    for number, row in enumerate(load_from_disk(str(tmp_path / "out")), 1):  # `datasets` applies EXIF to originals too
        assert row["image"].size == row["degraded_image"].size == ((64, 48) if number < 5 else (48, 64))
        left, right = (np.asarray(row[name], dtype=float) for name in ("image", "degraded_image"))
        assert np.abs(left * 0.8 - right).max() <= 0.51


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width, height):
    """A small PNG file that claims to be huge."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 10_000_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def text_bomb():
    """A PNG file whose text is huge when it is decompressed."""
    text = b"Comment\0\0" + zlib.compress(b"x" * 50_000_000, 9)
    complete = encoded(picture(0))
    return complete[:33] + chunk(b"zTXt", text) + complete[33:]


BROKEN = {
    "truncated.jpg": (lambda: encoded(picture(0, (320, 240)), "JPEG")[:3000], "truncated"),
    "text.jpg": (lambda: b"<html>not found</html>", "not a readable image"),
    "empty.jpg": (lambda: b"", "not a readable image"),
    "bomb.png": (lambda: bomb(30_000, 30_000), "too large to decode"),
    "large.png": (lambda: bomb(11_000, 9_000), "too large to decode"),  # Pillow alone would only warn
    "text bomb.png": (text_bomb, "not a readable image"),
    "float.tiff": (lambda: encoded(Image.new("F", (20, 20)), "TIFF"), "mode F"),
}


@pytest.mark.parametrize("storage", ["embedded", "path"])
def test_broken_images_are_reported_and_all_others_get_their_pair(tmp_path, storage):
    images = {name: write() for name, (write, _) in BROKEN.items()}
    images |= {f"good-{n}.png": encoded(picture(n)) for n in range(3)}
    rows = list(images.values())
    if storage == "path":
        rows = [tmp_path / name for name in images]
        for name, data in images.items():
            (tmp_path / name).write_bytes(data)
    summary = make(save(tmp_path / "data", dataset(rows, image_id=list(images))), tmp_path / "out")
    lines = {line["image_id"]: line for line in lines_of(tmp_path / "out")}
    assert list(lines) == list(images)
    for name, (_, message) in BROKEN.items():
        assert lines[name]["verdict"] == "error"
        assert message in lines[name]["error"]
        if storage == "path":
            assert str(tmp_path / name) in lines[name]["error"]
    assert summary.verdicts == {"error": len(BROKEN), "ok": 3}
    assert {name for name, view in views_of(tmp_path / "out").items() if view is None} == set(BROKEN)


def test_invalid_paths_are_reported(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "pipe.png")
    paths = [
        tmp_path / "missing.png",
        tmp_path / ("x" * 300 + ".png"),
        tmp_path / "loop",
        tmp_path / "dangling.png",
        tmp_path / "pipe.png",
        tmp_path,
        "http://127.0.0.1:1/a.png",
        "a\0b.png",
        None,
    ]
    summary = make(save(tmp_path / "data", dataset([*paths, picture(0)])), tmp_path / "out")
    assert summary.verdicts == {"error": 9, "ok": 1}
    assert all(error for _, _, error in summary.problems)
    assert "no image" in summary.problems[-1][2]


def test_unicode_markup_and_very_long_names_don_t_matter(tmp_path):
    names = ["ä ö/日本語.png", "<b>&\"'", "x" * 5000, "../../etc/passwd", "a\nb", "same", "same"]
    file = tmp_path / ("ü" * 100 + " 日本語.png")
    picture(9).save(file)
    images = [*(picture(n) for n in range(6)), file]
    make(save(tmp_path / "data", dataset(images, image_id=names)), tmp_path / "out")
    stored = load_from_disk(str(tmp_path / "out"))
    assert stored["image_id"][:] == names
    assert [line["image_id"] for line in lines_of(tmp_path / "out")] == names
    assert all(row["degraded_image"] is not None for row in stored)
    views = [row["degraded_image"].tobytes() for row in stored]
    assert len(set(views)) == len(views)  # equal names do not share a view


def test_links_out_of_their_folder_are_read_and_noted(tmp_path):
    (tmp_path / "images").mkdir()
    picture(0).save(tmp_path / "outside.png")
    picture(1).save(tmp_path / "images" / "inside.png")
    (tmp_path / "images" / "out.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "images" / "in.png").symlink_to("inside.png")
    before = (tmp_path / "outside.png").read_bytes()
    files = [tmp_path / "images" / name for name in ("out.png", "in.png", "inside.png")]
    summary = make(save(tmp_path / "data", dataset(files)), tmp_path / "out")
    assert summary.notes == [("0.png", f"symbolic link out of its folder, to {tmp_path / 'outside.png'}")]
    assert summary.verdicts == {"ok": 3}
    assert (tmp_path / "outside.png").read_bytes() == before
    assert leads_out(files[1]) is None
    assert leads_out(files[2]) is None


def test_tiny_images_are_measured_by_psnr_alone(tmp_path):
    make(save(tmp_path / "data", dataset([picture(0, (9, 40)), picture(1, (1, 1))])), tmp_path / "out")
    for line in lines_of(tmp_path / "out"):
        assert line["ssim"] is None
        assert line["psnr"] > 0


def test_pillows_switch_that_fills_in_grey_is_refused(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ValueError, match="LOAD_TRUNCATED_IMAGES"):
        read_picture({"bytes": encoded(picture(0)), "path": None})
