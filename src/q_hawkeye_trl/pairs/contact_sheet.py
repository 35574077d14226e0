"""A sheet with every kind and severity of degradation on one image, to look at."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from ..data.degradations import DEGRADATIONS, RELEASE_PRESETS, degrade
from ..data.images import load_image

_GAP = 4
_LABEL = 18


def contact_sheet(
    image: Image.Image, kinds: Sequence[str] = DEGRADATIONS, *, seed: int = 0, cell: int = 224
) -> Image.Image:
    """
    Draws a sheet: a row a kind, with the original and severities 1 to 5.

    Args:
        image (`PIL.Image.Image`):
            Original; it is degraded at its own size and then brought to that of a cell.
        kinds (`Sequence[str]`, *optional*, defaults to all):
            Kinds, one a row.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the views.
        cell (`int`, *optional*, defaults to `224`):
            Width of a cell in pixels.

    Returns:
        `PIL.Image.Image`: RGB.
    """
    columns = ["original", *(f"@{severity}" for severity in range(1, 6))]
    rows = [[image, *(degrade(image, f"{kind}@{severity}", seed) for severity in range(1, 6))] for kind in kinds]
    return _sheet(rows, [[kind, *columns[1:]] for kind in kinds], cell)


def release_sheet(image: Image.Image, *, seed: int = 0, cell: int = 224) -> Image.Image:
    """
    Draws a sheet of the release's strengths: a row a kind, with the original, the first strength, the second one, and
    the first strengthened by the second one of another kind.

    Args:
        image (`PIL.Image.Image`):
            Original.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the views.
        cell (`int`, *optional*, defaults to `224`):
            Width of a cell in pixels.

    Returns:
        `PIL.Image.Image`: RGB.
    """
    kinds = list(RELEASE_PRESETS)
    names = [
        [kind, f"{kind}@strong", f"{kind}+{other}@strong"]
        for kind, other in zip(kinds, kinds[1:] + kinds[:1], strict=True)
    ]
    rows = [[image, *(degrade(image, name, seed) for name in row)] for row in names]
    return _sheet(rows, [["original", *row] for row in names], cell)


def _sheet(rows: list[list[Image.Image]], labels: list[list[str]], cell: int) -> Image.Image:
    first = load_image(rows[0][0])
    size = (cell, max(1, round(cell * first.height / first.width)))
    step = (size[0] + _GAP, size[1] + _LABEL + _GAP)
    sheet = Image.new("RGB", (step[0] * len(rows[0]) + _GAP, step[1] * len(rows) + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    # Enlarged pixels stay pixels; a large image is shrunk as a browser does it.
    resample = Image.Resampling.NEAREST if cell >= first.width else Image.Resampling.LANCZOS
    for row, (pictures, names) in enumerate(zip(rows, labels, strict=True)):
        for column, (picture, name) in enumerate(zip(pictures, names, strict=True)):
            corner = (_GAP + column * step[0], _GAP + row * step[1])
            draw.text((corner[0] + 1, corner[1]), name, fill="black", font=font)
            sheet.paste(load_image(picture).resize(size, resample), (corner[0], corner[1] + _LABEL))
    return sheet
