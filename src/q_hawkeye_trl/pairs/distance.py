"""Distance of a degraded view from its original: SSIM and PSNR by scikit-image."""

from typing import NamedTuple

import numpy as np
from PIL import Image

WINDOW = 11
"""Side of SSIM's window in pixels: scikit-image truncates the Gaussian (standard deviation 1.5) at 3.5 of these."""


class Distance(NamedTuple):
    """SSIM in [-1, 1], `None` for images smaller than its window, and PSNR in dB, infinite for equal images."""

    ssim: float | None
    psnr: float


def measure_distance(original: np.ndarray, view: np.ndarray) -> Distance:
    """
    Measure SSIM and PSNR of two images.

    SSIM uses the Gaussian window of the paper and is the mean over the three channels, as luma alone misses a loss of
    colour. Both images are first averaged over blocks of F x F pixels with F = max(1, round(short side / 256)), which
    makes SSIM comparable across resolutions. PSNR is computed from all RGB values at full size.

    Args:
        original (`np.ndarray`):
            Image of shape `(H, W, 3)`, dtype `uint8`.
        view (`np.ndarray`):
            Degraded image of the same shape and dtype.

    Returns:
        [`Distance`]

    Raises:
        `ValueError`: The shapes differ.

    Source: [Wang et al., 2004](https://www.cns.nyu.edu/pub/lcv/wang03-preprint.pdf).
    """
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    if original.shape != view.shape:
        raise ValueError(f"Expected two images of one shape, got {original.shape} and {view.shape}.")
    with np.errstate(divide="ignore"):  # PSNR of equal images is infinite
        psnr = float(peak_signal_noise_ratio(original, view, data_range=255))
    factor = max(1, round(min(original.shape[:2]) / 256))
    left, right = _averaged(original, factor), _averaged(view, factor)
    if min(left.shape[:2]) < WINDOW:
        return Distance(None, psnr)
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return Distance(float(structural_similarity(left, right, channel_axis=2, data_range=255, **window)), psnr)


def _averaged(array: np.ndarray, factor: int) -> np.ndarray:
    image = Image.fromarray(array)
    return np.asarray(image.reduce(factor) if factor > 1 else image, dtype=np.float32)
