"""Kinds of distortion by the file names of the sets that encode them."""

import re

_KADID = [
    "Gaussian blur",
    "lens blur",
    "motion blur",
    "color diffusion",
    "color shift",
    "color quantization",
    "color saturation 1",
    "color saturation 2",
    "JPEG 2000",
    "JPEG",
    "white noise",
    "white noise in color",
    "impulse noise",
    "multiplicative noise",
    "denoise",
    "brighten",
    "darken",
    "mean shift",
    "jitter",
    "non-eccentricity patch",
    "pixelate",
    "quantization",
    "color block",
    "high sharpen",
    "contrast change",
]
_TID = [
    "additive Gaussian noise",
    "noise in color",
    "spatially correlated noise",
    "masked noise",
    "high frequency noise",
    "impulse noise",
    "quantization noise",
    "Gaussian blur",
    "denoising",
    "JPEG",
    "JPEG 2000",
    "JPEG transmission errors",
    "JPEG 2000 transmission errors",
    "non-eccentricity pattern noise",
    "block-wise distortions",
    "mean shift",
    "contrast change",
    "color saturation",
    "multiplicative Gaussian noise",
    "comfort noise",
    "lossy compression of noise",
    "color quantization with dither",
    "chromatic aberrations",
    "sparse sampling",
]

_NUMBERED = {
    "kadid10k": (re.compile(r"I\d+_(\d+)_\d+", re.IGNORECASE), _KADID),
    "tid2013": (re.compile(r"I\d+_(\d+)_\d+", re.IGNORECASE), _TID),
    "pipal": (re.compile(r"A\d+_(\d+)_\d+", re.IGNORECASE), ()),
}
_CSIQ = re.compile(r"[^./]+\.([A-Za-z0-9]+)\.\d\.png$")


def distortion_of(dataset: str, image_id: str) -> str:
    """
    Reads the kind of distortion off an image's name.

    Args:
        dataset (`str`):
            Name of the set: `kadid10k`, `tid2013`, `csiq` or `pipal`.
        image_id (`str`):
            File name, folders before it allowed.

    Returns:
        `str`: The kind, `type NN` where the set's numbers have no names here, or `""` for another set or name.

    Source: KADID-10k (Lin et al., 2019), TID2013 (Ponomarenko et al., 2015): their lists of distortions.
    """
    name = image_id.replace("\\", "/").rsplit("/", 1)[-1]
    if dataset == "csiq":
        match = _CSIQ.match(name)
        return match.group(1) if match else ""
    if dataset not in _NUMBERED:
        return ""
    pattern, kinds = _NUMBERED[dataset]
    match = pattern.match(name)
    if match is None:
        return ""
    number = int(match.group(1))
    return kinds[number - 1] if 1 <= number <= len(kinds) else f"type {number:02}"
