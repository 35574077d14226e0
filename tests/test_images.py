import numpy as np
import pytest
from PIL import Image, ImageFile

from iqa_layouts import refused
from q_hawkeye_trl.data.images import decode_cell, load_image, to_rgb


def _noise(height=40, width=60, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_rgb_files_are_read_as_they_are(tmp_path):
    Image.fromarray(_noise()).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.open(tmp_path / "a.png")):
        image = load_image(source)
        assert image.mode == "RGB"
        assert np.array_equal(np.array(image), _noise())


# EXIF orientation -> how the stored array must be turned (EXIF 2.32, section 4.6.4), written as numpy operations.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(_noise()).save(tmp_path / "a.png", exif=exif)
    image = load_image(tmp_path / "a.png")
    assert np.array_equal(np.array(image), UPRIGHT[orientation](_noise()))
    assert image.getexif().get(0x0112, 1) == 1  # so that nobody turns it again


RED, CLEAR, HALF = (200, 0, 100, 255), (200, 0, 100, 0), (200, 0, 100, 51)  # opaque, clear, one fifth
FADED = (244, 204, 224)  # 0.2 * (200, 0, 100) + 0.8 * 255
COLOURS = [(200, 0, 100), (255, 255, 255), FADED]


def _pixels(mode, values):
    image = Image.new(mode, (len(values), 1))
    image.putdata(values)
    return image


def _palette(values, mode="P"):
    image = Image.new(mode, (len(values), 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata(values)
    return image


def _greys(*values):
    return [(value, value, value) for value in values]


DEEP = _greys(0, 1, 4, 128, 255)
_DEEP = np.array([[0, 257, 1000, 32768, 65535]], dtype="<u2")


def _assert_pixels(image, expected, tolerance=0):
    assert image.mode == "RGB"
    assert np.abs(np.array(image).astype(int)[0] - expected).max() <= tolerance


# Mode -> an image of it and its RGB pixels, worked out by the mode's definition.
MODES = {
    "1": (lambda: _pixels("1", [0, 255]), _greys(0, 255)),
    "L": (lambda: _pixels("L", [0, 77, 255]), _greys(0, 77, 255)),
    "P": (lambda: _palette([0, 1]), [(10, 20, 30), (40, 50, 60)]),
    "PA": (lambda: _palette([(0, 255), (1, 0)], "PA"), [(10, 20, 30), (255, 255, 255)]),
    "RGB": (lambda: _pixels("RGB", [(1, 2, 3)]), [(1, 2, 3)]),
    "RGBX": (lambda: _pixels("RGBX", [(1, 2, 3, 0)]), [(1, 2, 3)]),
    "RGBA": (lambda: _pixels("RGBA", [RED, CLEAR, HALF]), COLOURS),
    "RGBa": (lambda: _pixels("RGBa", [RED, (0, 0, 0, 0), (40, 0, 20, 51)]), COLOURS),
    "LA": (lambda: _pixels("LA", [(77, 255), (77, 0), (0, 51)]), _greys(77, 255, 204)),
    "La": (lambda: _pixels("La", [(77, 255), (0, 0), (20, 51)]), _greys(77, 255, 224)),
    "CMYK": (lambda: _pixels("CMYK", [(0, 255, 255, 0), (0, 0, 0, 255)]), [(255, 0, 0), (0, 0, 0)]),
    "YCbCr": (lambda: _pixels("YCbCr", [(77, 128, 128), (76, 85, 255)]), [(77, 77, 77), (254, 0, 0)]),
    "HSV": (lambda: _pixels("HSV", [(0, 255, 255), (0, 0, 77)]), [(255, 0, 0), (77, 77, 77)]),
    "I": (lambda: Image.fromarray(_DEEP.astype("<i4")), DEEP),
    "I;16": (lambda: Image.fromarray(_DEEP), DEEP),
    "I;16L": (lambda: Image.frombytes("I;16L", (5, 1), _DEEP.tobytes()), DEEP),
    "I;16B": (lambda: Image.frombytes("I;16B", (5, 1), _DEEP.astype(">u2").tobytes()), DEEP),
    "I;16N": (lambda: Image.frombytes("I;16N", (5, 1), _DEEP.astype("=u2").tobytes()), DEEP),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes_are_converted(mode):
    make, expected = MODES[mode]
    assert make().mode == mode
    _assert_pixels(load_image(make()), expected, tolerance=1 if mode == "YCbCr" else 0)


def test_modes_without_a_defined_conversion_are_refused_by_file_and_mode(tmp_path):
    others = sorted(set(Image.MODES) - set(MODES))
    assert others == ["F", "LAB"]
    for mode in others:
        Image.new(mode, (4, 4)).save(tmp_path / "odd.tiff")
        refused(rf"odd\.tiff.*mode {mode}", load_image, tmp_path / "odd.tiff")


@pytest.mark.parametrize("value", [70000, -1])
def test_integers_beyond_16_bits_are_refused(value):
    refused(f"{value}.*mode I ", to_rgb, Image.fromarray(np.array([[value]], dtype=np.int32)))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey_files(tmp_path, suffix):
    Image.fromarray(_DEEP).save(tmp_path / f"a.{suffix}")
    _assert_pixels(load_image(tmp_path / f"a.{suffix}"), DEEP)


@pytest.mark.parametrize(
    ("image", "key", "expected"),
    [
        (lambda: _palette([0, 1]), 1, [(10, 20, 30), (255, 255, 255)]),
        (lambda: _pixels("L", [7, 77]), 77, _greys(7, 255)),
        (lambda: Image.fromarray(_DEEP), 1000, _greys(0, 1, 255, 128, 255)),
    ],
)
def test_a_transparent_entry_of_a_png_is_white(tmp_path, image, key, expected):
    image().save(tmp_path / "clear.png", transparency=key)
    _assert_pixels(load_image(tmp_path / "clear.png"), expected)


def test_a_cell_is_a_file_bytes_or_an_image(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(_DEEP).save(path)
    data, opened = path.read_bytes(), Image.open(path)
    cells = [path, str(path), data, opened, {"path": str(path), "bytes": None}, {"path": "gone.png", "bytes": data}]
    for cell in cells:
        _assert_pixels(decode_cell(cell, "row 1"), DEEP)


def test_errors_of_a_cell_start_with_its_place():
    for cell, named in (
        (None, "no image"),
        ({"path": None, "bytes": None}, "no image"),
        ({"path": "a.png", "bytes": b"text"}, "a.png"),
        (b"text", "in memory"),
        ("gone.png", "gone.png"),
    ):
        error = FileNotFoundError if cell == "gone.png" else ValueError
        refused(f"^row 1, column `image`: .*{named}", decode_cell, cell, "row 1, column `image`", error=error)


def test_the_first_frame_of_an_animation_counts(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_files_are_named(tmp_path, suffix, share):
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(_noise()).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refused(rf"cut\.{suffix}.*not a readable image.*fetch the file again", load_image, path)
    if suffix == "jpg" and share > 0.1:
        with Image.open(path) as image:  # opened already
            refused(r"cut\.jpg", load_image, image)


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"\xff\xd8\xff" * 9]
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "text.jpg"
    path.write_bytes(content)
    refused(r"text\.jpg is not a readable image", load_image, path)


def test_missing_files_and_folders_are_named(tmp_path):
    for path in (tmp_path / "none.jpg", tmp_path):
        refused(path.name, load_image, path, error=FileNotFoundError)


def test_decompression_bombs_are_refused(tmp_path, monkeypatch):
    Image.fromarray(_noise()).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # 40 x 60 is more than twice that
    refused(r"bomb\.png is too large", load_image, tmp_path / "bomb.png")


def test_pillows_switch_that_fills_in_grey_is_refused(tmp_path, monkeypatch):
    Image.fromarray(_noise()).save(tmp_path / "a.jpg")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    refused("LOAD_TRUNCATED_IMAGES", load_image, tmp_path / "a.jpg")
