"""SSIM and PSNR against plain loops."""

import math

import numpy as np
import pytest

from q_hawkeye_trl.data.image_distortions import darken, gaussian_blur, gaussian_noise
from q_hawkeye_trl.demo.contents import draw_content
from q_hawkeye_trl.pairs.distance import measure_distance


def _reference_ssim(x, y):
    """Wang et al.'s formula, window by window, over the pixels where the window fits."""
    offsets = range(-5, 6)
    weights = {(i, j): math.exp(-(i * i + j * j) / (2 * 1.5**2)) for i in offsets for j in offsets}
    total = sum(weights.values())
    values = []
    for row in range(5, x.shape[0] - 5):
        for column in range(5, x.shape[1] - 5):
            mx = my = xx = yy = xy = 0.0
            for (i, j), weight in weights.items():
                a, b, w = x[row + i, column + j], y[row + i, column + j], weight / total
                mx, my, xx, yy, xy = mx + w * a, my + w * b, xx + w * a * a, yy + w * b * b, xy + w * a * b
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            top = (2 * mx * my + c1) * (2 * (xy - mx * my) + c2)
            values.append(top / ((mx * mx + my * my + c1) * (xx - mx * mx + yy - my * my + c2)))
    return sum(values) / len(values)


def test_ssim_is_wangs_over_the_three_channels():
    original = draw_content(3)[10:34, 20:46]
    view = gaussian_noise(original, 20, np.random.default_rng(0))
    expected = [_reference_ssim(original[..., c].astype(float), view[..., c].astype(float)) for c in range(3)]
    assert measure_distance(original, view).ssim == pytest.approx(sum(expected) / 3, abs=2e-5)


def test_large_images_are_averaged_over_blocks_first():
    original = np.kron(draw_content(1), np.ones((9, 9, 1), dtype=np.uint8))  # 1008 x 756: F = 3
    view = gaussian_noise(original, 40, np.random.default_rng(0))
    blocks = [
        np.rint(array.reshape(252, 3, 336, 3, 3).astype(float).mean(axis=(1, 3))).astype(np.uint8)
        for array in (original, view)
    ]
    assert measure_distance(original, view).ssim == pytest.approx(measure_distance(*blocks).ssim, abs=2e-3)


def test_equal_images_and_the_order_of_distances():
    original = draw_content(2)
    assert measure_distance(original, original) == (pytest.approx(1.0), math.inf)
    values = [measure_distance(original, gaussian_blur(original, radius)) for radius in (0.5, 1, 2, 4)]
    assert [v.ssim for v in values] == sorted((v.ssim for v in values), reverse=True)
    assert [v.psnr for v in values] == sorted((v.psnr for v in values), reverse=True)


def test_psnr_is_that_of_all_values():
    original = draw_content(2)
    view = darken(original, 0.7)
    squares = [(float(a) - float(b)) ** 2 for a, b in zip(original.ravel(), view.ravel(), strict=True)]
    expected = 20 * math.log10(255) - 10 * math.log10(sum(squares) / len(squares))
    assert measure_distance(original, view).psnr == pytest.approx(expected)


def test_a_loss_of_colour_alone_is_seen():
    original = draw_content(4)
    grey = np.repeat((original @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)[..., None], 3, axis=2)
    assert measure_distance(original, grey).ssim < 0.97


def test_shapes_must_agree_and_small_images_have_no_ssim():
    assert measure_distance(draw_content(0)[:10], draw_content(1)[:10]).ssim is None
    assert measure_distance(draw_content(0)[:11], draw_content(1)[:11]).ssim is not None
    with pytest.raises(ValueError, match="shape"):
        measure_distance(draw_content(0)[:10], draw_content(0)[:11])
