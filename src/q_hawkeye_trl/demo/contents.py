"""
Procedural picture contents of the synthetic set: textures, gradients, shapes, strokes and text-like marks.

A content stands for what a photograph shows before anything degrades it. Every content mixes smooth areas, sharp edges
and texture, because a picture without edges tells nothing about blur and one without smooth areas nothing about noise.
"""

import numpy as np
from PIL import Image, ImageDraw

IMAGE_SIZE = (112, 84)
"""Width and height in pixels: 4:3 like KonIQ-10k, and multiples of 28, so that Qwen2.5-VL never resizes them."""


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(20, 236, size=3).tolist()
    return red, green, blue


def _texture(rng: np.random.Generator) -> np.ndarray:
    """1/f noise like that of natural pictures, (H, W, 3) in [0, 1]; three channels share most of their structure."""
    width, height = IMAGE_SIZE
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf  # no constant part: levels are set at the end
    amplitude = frequency ** -rng.uniform(1.1, 1.8)
    fields = rng.standard_normal((4, height, width), dtype=np.float32)
    spectrum = np.fft.rfft2(fields[0] + 0.5 * fields[1:]) * amplitude
    noise = np.fft.irfft2(spectrum, s=(height, width)).transpose(1, 2, 0)
    noise = (noise - noise.mean()) / noise.std()
    return np.clip(0.5 + 0.2 * noise, 0, 1)


def _gradient(rng: np.random.Generator) -> np.ndarray:
    """Linear or radial passage between two colours, (H, W, 3) in [0, 1]."""
    width, height = IMAGE_SIZE
    rows, columns = np.mgrid[0:height, 0:width] / max(IMAGE_SIZE)
    if rng.random() < 0.5:
        angle = rng.uniform(0, 2 * np.pi)
        position = np.cos(angle) * columns + np.sin(angle) * rows
    else:
        position = np.hypot(columns - rng.uniform(0, 1), rows - rng.uniform(0, 0.75))
    position = (position - position.min()) / np.ptp(position)
    first, second = np.array(_colour(rng)) / 255, np.array(_colour(rng)) / 255
    return first + position[..., None] * (second - first)


def _draw_shapes(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    width, height = IMAGE_SIZE
    for _ in range(rng.integers(3, 9)):
        x, y = rng.uniform(-10, width - 5), rng.uniform(-10, height - 5)
        w, h = rng.uniform(8, 55, size=2)
        kind = rng.integers(3)
        if kind == 0:
            draw.ellipse((x, y, x + w, y + h), fill=_colour(rng))
        elif kind == 1:
            draw.rectangle((x, y, x + w, y + h), fill=_colour(rng))
        else:
            draw.polygon([(x + w * a, y + h * b) for a, b in rng.random((int(rng.integers(3, 6)), 2))], _colour(rng))


def _draw_strokes(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    for _ in range(rng.integers(2, 8)):
        start, heading = rng.random(2) * IMAGE_SIZE, rng.uniform(0, 2 * np.pi)
        headings = heading + np.cumsum(rng.normal(0, 0.4, size=8))
        steps = rng.uniform(4, 14) * np.stack([np.cos(headings), np.sin(headings)], axis=1)
        points = [tuple(point) for point in start + np.cumsum(steps, axis=0)]
        draw.line(points, fill=_colour(rng), width=int(rng.integers(1, 4)))


def _draw_marks(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """Rows of small upright bars and dots that stand for lines of text."""
    width, height = IMAGE_SIZE
    for _ in range(rng.integers(0, 3)):
        x, y = rng.uniform(2, width * 0.6), rng.uniform(2, height - 12)
        colour, size = _colour(rng), int(rng.integers(4, 9))
        for _ in range(rng.integers(4, 14)):
            x += int(rng.integers(2, 5))
            top = y + int(rng.integers(0, size // 2 + 1))
            draw.line((x, top, x, y + size), fill=colour, width=1)
            if rng.random() < 0.4:
                draw.line((x, top, x + 2, top), fill=colour, width=1)


def _set_levels(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Well-exposed levels, so that a dark or flat picture is one that was darkened or flattened."""
    luminance = picture @ np.array([0.299, 0.587, 0.114])
    scale = rng.uniform(48, 62) / max(luminance.std(), 1e-6)
    return np.clip(np.rint((picture - luminance.mean()) * scale + rng.uniform(112, 144)), 0, 255).astype(np.uint8)


def draw_content(seed: int) -> np.ndarray:
    """Draw the undistorted uint8 picture (84, 112, 3) of a content seed."""
    rng = np.random.default_rng(seed)
    texture, gradient = _texture(rng), _gradient(rng)
    share = rng.uniform(0.15, 0.7)
    background = share * texture + (1 - share) * gradient
    canvas = Image.fromarray(np.rint(background * 255).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    for paint in (_draw_shapes, _draw_strokes, _draw_marks):
        paint(draw, rng)
    # A little of the texture stays on every surface: perfectly flat areas would give noise away too easily.
    picture = np.asarray(canvas) / 255 + rng.uniform(0.1, 0.4) * (texture - 0.5)
    return _set_levels(picture, rng)
