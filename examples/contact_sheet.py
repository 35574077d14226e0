"""
Draw all degradations of an image on one sheet, to choose kinds and severities by eye.

    python examples/contact_sheet.py --out runs/sheet.png
    python examples/contact_sheet.py photograph.jpg --out runs/release.png --release

Without an image, a procedural one is degraded. docs/degradations.webp is `--out docs/degradations.webp`.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from q_hawkeye_trl.data.degradations import DEGRADATIONS, RELEASE_PRESETS, degrade
from q_hawkeye_trl.data.images import load_image
from q_hawkeye_trl.demo.contents import draw_content

GAP, LABEL = 4, 18


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", nargs="?", help="image to degrade; by default a procedural one")
    parser.add_argument("--out", type=Path, required=True, help="file to write; its suffix names the format")
    parser.add_argument("--seed", type=int, default=0, help="seed of the views")
    parser.add_argument("--cell", type=int, default=224, help="width of a cell in pixels")
    parser.add_argument("--release", action="store_true", help="the release's strengths instead of all severities")
    args = parser.parse_args()
    image = load_image(args.image) if args.image else Image.fromarray(draw_content(13))
    rows = [(kind, [f"{kind}@{severity}" for severity in range(1, 6)]) for kind in DEGRADATIONS]
    if args.release:  # the first round, the second one, and the two combined
        kinds = list(RELEASE_PRESETS)
        following = zip(kinds, kinds[1:] + kinds[:1], strict=True)
        rows = [("original", [kind, f"{kind}@strong", f"{kind}+{other}@strong"]) for kind, other in following]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw_sheet(image, rows, args.seed, args.cell).save(args.out, quality=80)
    print(f"{args.out}: {args.out.stat().st_size / 1024:.0f} KiB")


def draw_sheet(image: Image.Image, rows: list[tuple[str, list[str]]], seed: int, cell: int) -> Image.Image:
    """Draw the original, under a title, and the degradations of each row, made at full size and resized."""
    size = (cell, max(1, round(cell * image.height / image.width)))
    step = (size[0] + GAP, size[1] + LABEL + GAP)
    sheet = Image.new("RGB", (step[0] * (len(rows[0][1]) + 1) + GAP, step[1] * len(rows) + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    # enlarged pixels stay pixels; a large image is shrunk as a browser does it
    resample = Image.Resampling.NEAREST if cell >= image.width else Image.Resampling.LANCZOS
    for row, (title, names) in enumerate(rows):
        for column, name in enumerate([title, *names]):
            x, y = GAP + column * step[0], GAP + row * step[1]
            view = degrade(image, name, seed) if column else image
            draw.text((x + 1, y), name.removeprefix(title) or title, fill="black", font=font)
            sheet.paste(view.resize(size, resample), (x, y + LABEL))
    return sheet


if __name__ == "__main__":
    main()
