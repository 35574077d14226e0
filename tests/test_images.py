import numpy as np
import pytest
from PIL import Image, ImageFile

from q_hawkeye_trl.data.images import load_image, to_rgb


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


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path, suffix):
    values = np.array([[0, 257, 1000, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    image = np.array(load_image(tmp_path / f"a.{suffix}"))
    assert image.tolist() == [[[v] * 3 for v in (0, 1, 4, 128, 255)]]


def test_32_bit_integers_count_as_16_bits_and_beyond_are_refused():
    assert np.array(to_rgb(Image.fromarray(np.array([[0, 65535]], dtype=np.int32)))).tolist() == [[[0] * 3, [255] * 3]]
    for value in (70000, -1):
        with pytest.raises(ValueError, match="beyond 16 bits"):
            to_rgb(Image.fromarray(np.array([[value]], dtype=np.int32)))


@pytest.mark.parametrize("mode", ["F", "LAB"])
def test_modes_without_a_defined_conversion_are_refused_with_the_file(tmp_path, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "odd.tiff")
    with pytest.raises(ValueError, match=rf"odd\.tiff.*mode {mode}"):
        load_image(tmp_path / "odd.tiff")


def test_transparency_is_composited_over_white():
    rgba = Image.new("RGBA", (3, 1))
    rgba.putdata([(200, 0, 100, 255), (200, 0, 100, 0), (200, 0, 100, 51)])  # opaque, clear, one fifth
    pixels = np.array(to_rgb(rgba)).astype(float)
    assert pixels[0, 0].tolist() == [200, 0, 100]
    assert pixels[0, 1].tolist() == [255, 255, 255]
    assert np.abs(pixels[0, 2] - [0.2 * c + 0.8 * 255 for c in (200, 0, 100)]).max() <= 1
    grey = Image.new("LA", (1, 1), (0, 0))
    assert to_rgb(grey).getpixel((0, 0)) == (255, 255, 255)


def test_palettes_with_and_without_a_transparent_entry(tmp_path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    palette.save(tmp_path / "plain.png")
    palette.save(tmp_path / "clear.png", transparency=1)
    assert np.array(load_image(tmp_path / "plain.png")).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert np.array(load_image(tmp_path / "clear.png")).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_grey_bilevel_and_cmyk(tmp_path):
    Image.new("L", (2, 2), 77).save(tmp_path / "grey.png")
    Image.new("1", (2, 2), 1).save(tmp_path / "bilevel.png")
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=95)
    assert load_image(tmp_path / "grey.png").getpixel((0, 0)) == (77, 77, 77)
    assert load_image(tmp_path / "bilevel.png").getpixel((0, 0)) == (255, 255, 255)
    red, green, blue = load_image(tmp_path / "cmyk.jpg").getpixel((8, 8))
    assert red > 250
    assert green < 5
    assert blue < 5


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
    with pytest.raises(ValueError, match=rf"cut\.{suffix}.*not a readable image.*fetch the file again"):
        load_image(path)


def test_an_image_that_was_opened_but_is_broken_is_named_too(tmp_path):
    path = tmp_path / "cut.jpg"
    Image.fromarray(_noise()).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with Image.open(path) as image, pytest.raises(ValueError, match=r"cut\.jpg"):
        load_image(image)


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"\xff\xd8\xff" * 9]
)
def test_what_is_no_image_is_refused(tmp_path, content):
    path = tmp_path / "text.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"text\.jpg is not a readable image"):
        load_image(path)


def test_missing_files_and_folders_are_named(tmp_path):
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(FileNotFoundError, match=path.name):
            load_image(path)


def test_decompression_bombs_are_refused(tmp_path, monkeypatch):
    Image.fromarray(_noise()).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # 40 x 60 is more than twice that
    with pytest.raises(ValueError, match=r"bomb\.png is too large"):
        load_image(tmp_path / "bomb.png")


def test_pillows_switch_that_fills_in_grey_is_refused(tmp_path, monkeypatch):
    Image.fromarray(_noise()).save(tmp_path / "a.jpg")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ValueError, match="LOAD_TRUNCATED_IMAGES"):
        load_image(tmp_path / "a.jpg")
