"""How far a degraded view is from its original: SSIM and PSNR by scikit-image."""

from typing import NamedTuple

import numpy as np
from PIL import Image

WINDOW = 11
"""Side of SSIM's window in pixels: scikit-image cuts a Gaussian of standard deviation 1.5 at 3.5 of these."""


class Distance(NamedTuple):
    """
    Distance of two images of the same size.

    Args:
        ssim (`float` or `None`):
            In [-1, 1], 1 for equal images; `None` where the window does not fit into the image.
        psnr (`float`):
            In dB, at least 0; infinite for equal images.
    """

    ssim: float | None
    psnr: float


def measure_distance(original: np.ndarray, view: np.ndarray) -> Distance:
    """
    Measures two images.

    SSIM is that of [Wang et al., 2004](https://www.cns.nyu.edu/pub/lcv/wang03-preprint.pdf): Gaussian window, after
    both images are averaged over blocks of F x F pixels with F = max(1, round(short side / 256)), which brings them
    near the size at which they are looked at and makes the value comparable across resolutions. It is the mean over
    the three channels, since the luma alone does not see a loss of colour. PSNR is that of all RGB values, at full
    size.

    Args:
        original (`np.ndarray`):
            Image of shape `(H, W, 3)`, dtype `uint8`.
        view (`np.ndarray`):
            Degraded image of the same shape and dtype.

    Returns:
        [`Distance`]

    Raises:
        `ValueError`: Different shapes.
    """
    from skimage.metrics import structural_similarity

    if original.shape != view.shape:
        raise ValueError(f"Expected two images of one shape, got {original.shape} and {view.shape}.")
    psnr = _psnr(original, view)
    factor = max(1, round(min(original.shape[:2]) / 256))
    left, right = _averaged(original, factor), _averaged(view, factor)
    if min(left.shape[:2]) < WINDOW:
        return Distance(None, psnr)
    ssim = structural_similarity(
        left,
        right,
        channel_axis=2,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return Distance(float(ssim), psnr)


def _psnr(original: np.ndarray, view: np.ndarray) -> float:
    from skimage.metrics import peak_signal_noise_ratio

    with np.errstate(divide="ignore"):  # equal images: the ratio is infinite
        return float(peak_signal_noise_ratio(original, view, data_range=255))


def _averaged(array: np.ndarray, factor: int) -> np.ndarray:
    image = Image.fromarray(array)
    return np.asarray(image.reduce(factor) if factor > 1 else image, dtype=np.float32)
