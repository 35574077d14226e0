"""Distortions: pure functions on one image array, with strengths in plain units. Most kinds are KADID-10k's."""

import io
import math

import numpy as np
from PIL import Image, ImageFilter, features

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


def gaussian_noise(array: np.ndarray, std: float, rng: np.random.Generator) -> np.ndarray:
    """
    Add independent Gaussian noise of standard deviation `std` (in units of 0 to 255) to every channel of every pixel.

    The same state of `rng` at two values of `std` draws the same field, scaled. Every function here takes a uint8
    image of shape (H, W, 3), returns one of the same shape, and raises `ValueError` on another array or on a strength
    outside its range.
    """
    _check(array, "std", std, 0)
    return _to_uint8(array + std * rng.standard_normal(array.shape, dtype=np.float32))


def gaussian_blur(array: np.ndarray, radius: float) -> np.ndarray:
    """Blur with Pillow's `GaussianBlur`, whose `radius` (pixels, at least 0) is the standard deviation."""
    _check(array, "radius", radius, 0)
    return np.array(Image.fromarray(array).filter(ImageFilter.GaussianBlur(radius)))


def defocus_blur(array: np.ndarray, radius: float) -> np.ndarray:
    """Average over a disc with a soft rim, as a lens out of focus does; `radius` is in pixels, 0.5 changes nothing."""
    _check(array, "radius", radius, 0)
    half = math.ceil(radius)
    offsets = np.arange(-half, half + 1)
    distance = np.hypot(offsets[:, None], offsets[None, :])
    return _convolve(array, np.clip(radius + 0.5 - distance, 0, 1))


def motion_blur(array: np.ndarray, length: float, angle: float) -> np.ndarray:
    """
    Average along a straight line, as a moving camera does.

    `length` is in pixels, at least 1, which changes nothing. `angle` is in degrees, counter-clockwise from horizontal.
    """
    _check(array, "length", length, 1)
    _check(array, "angle", angle, -math.inf)
    return _convolve(array, _line(length, math.radians(angle)))


def jpeg(array: np.ndarray, quality: float, repeats: int = 1) -> np.ndarray:
    """Compress as JPEG `repeats` times, at Pillow's `quality` in [1, 95], rounded to a whole number."""
    _check(array, "quality", quality, 1, 95)
    if not isinstance(repeats, int) or repeats < 1:
        raise ValueError(f"`repeats` must be a whole number of at least 1, got {repeats!r}.")
    for _ in range(repeats):
        array = _coded(array, format="JPEG", quality=round(quality))
    return array


def jpeg2000(array: np.ndarray, ratio: float) -> np.ndarray:
    """
    Compress as JPEG 2000 (irreversible wavelets) to one `ratio`-th (at least 1) of the raw size without headers.

    An image that fits into that size anyway, like a flat one, loses next to nothing. Raises `RuntimeError` if this
    Pillow was built without OpenJPEG.
    """
    _check(array, "ratio", ratio, 1)
    if not features.check("jpg_2000"):
        raise RuntimeError("This Pillow cannot write JPEG 2000: install one built with OpenJPEG, or drop `jpeg2000`.")
    # OpenJPEG counts the headers, about 270 bytes, which would leave nothing for the pixels of a small image.
    rate = array.size / (array.size / ratio + 270)
    return _coded(array, format="JPEG2000", quality_mode="rates", quality_layers=[rate], irreversible=True)


def darken(array: np.ndarray, factor: float) -> np.ndarray:
    """Multiply by `factor` in [0, 1]."""
    _check(array, "factor", factor, 0, 1)
    return _to_uint8(array * np.float32(factor))


def brighten(array: np.ndarray, factor: float) -> np.ndarray:
    """Multiply by `factor`, at least 1, and clip at white."""
    _check(array, "factor", factor, 1)
    return _to_uint8(array * np.float32(factor))


def contrast(array: np.ndarray, factor: float) -> np.ndarray:
    """Scale the distance of every value from the image's mean luma by `factor`, at least 0: below 1 flattens."""
    _check(array, "factor", factor, 0)
    grey = np.float32((array @ _LUMA).mean())
    return _to_uint8(grey + (array - grey) * np.float32(factor))


def saturation(array: np.ndarray, factor: float) -> np.ndarray:
    """Scale the distance of every pixel from its own luma by `factor`, at least 0, which gives grey."""
    _check(array, "factor", factor, 0)
    grey = (array @ _LUMA)[..., None]
    return _to_uint8(grey + (array - grey) * np.float32(factor))


def pixelate(array: np.ndarray, block: float) -> np.ndarray:
    """Replace blocks of `block` pixels a side (at least 1; a fraction mixes the neighbouring sizes) by their mean."""
    _check(array, "block", block, 1)
    rows, columns = (_cell_sizes(size, block) for size in array.shape[:2])
    sums = np.add.reduceat(array.astype(np.float32), np.cumsum(rows) - rows, axis=0)
    sums = np.add.reduceat(sums, np.cumsum(columns) - columns, axis=1)
    means = sums / (rows[:, None] * columns)[..., None]
    return _to_uint8(means.repeat(rows, axis=0).repeat(columns, axis=1))


def banding(array: np.ndarray, levels: float) -> np.ndarray:
    """Round every channel to `levels` (in [2, 256]) evenly spaced values."""
    _check(array, "levels", levels, 2, 256)
    step = np.float32(255 / (levels - 1))
    return _to_uint8(np.rint(array / step) * step)


def _check(array: np.ndarray, name: str, value: float, low: float, high: float = math.inf) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"Expected a uint8 array of shape (H, W, 3), got {found}.")
    if array.size == 0:
        raise ValueError(f"The image is empty: its shape is {array.shape}.")
    if not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"`{name}` must be a finite number in [{low}, {high}], got {value!r}.")


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _coded(array: np.ndarray, **options) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, **options)
    with Image.open(buffer) as image:
        return np.array(image.convert("RGB"))


def _cell_sizes(size: int, block: float) -> np.ndarray:
    cells = max(1, round(size / block))
    return np.diff(np.rint(np.arange(cells + 1) * size / cells)).astype(int)


def _line(length: float, angle: float) -> np.ndarray:
    # The line is sampled ten times a pixel; each sample is shared among its four neighbours, so that length and angle
    # act continuously. `length - 1`: the pixel itself is one long.
    half = math.ceil(length / 2)
    reach = np.linspace(-(length - 1) / 2, (length - 1) / 2, 10 * math.ceil(length) + 1)
    columns, rows = half + reach * math.cos(angle), half - reach * math.sin(angle)
    kernel = np.zeros((2 * half + 2, 2 * half + 2))
    column, row = np.floor(columns).astype(int), np.floor(rows).astype(int)
    right, below = columns - column, rows - row
    np.add.at(kernel, (row, column), (1 - below) * (1 - right))
    np.add.at(kernel, (row, column + 1), (1 - below) * right)
    np.add.at(kernel, (row + 1, column), below * (1 - right))
    np.add.at(kernel, (row + 1, column + 1), below * right)
    return kernel[:-1, :-1]  # no sample reaches the last row and column


def _convolve(array: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    from scipy.signal import oaconvolve  # takes half a second to import

    # FFT blocks: a direct convolution with a kernel of 75 x 75 takes seconds for one photograph. Odd kernels only.
    rows, columns = kernel.shape[0] // 2, kernel.shape[1] // 2
    padded = np.pad(array.astype(np.float32), ((rows, rows), (columns, columns), (0, 0)), mode="edge")
    weights = (kernel / kernel.sum()).astype(np.float32)
    return _to_uint8(oaconvolve(padded, weights[..., None], mode="valid", axes=(0, 1)))
