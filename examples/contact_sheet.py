"""
Draws a contact sheet of all degradations on an image, by default on a procedural one.

    python examples/contact_sheet.py --out runs/sheet.png
    python examples/contact_sheet.py photograph.jpg --out runs/sheet.png --cell 320
    python examples/contact_sheet.py photograph.jpg --out runs/release.png --release

docs/degradations.webp was made by `--out docs/degradations.webp`.
"""

import argparse
from pathlib import Path

from PIL import Image

from q_hawkeye_trl.data.images import load_image
from q_hawkeye_trl.demo.contents import draw_content
from q_hawkeye_trl.pairs.contact_sheet import contact_sheet, release_sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", nargs="?", help="image to degrade; by default a procedural one")
    parser.add_argument("--out", type=Path, required=True, help="file to write; its ending names the format")
    parser.add_argument("--content", type=int, default=13, help="which procedural image")
    parser.add_argument("--seed", type=int, default=0, help="seed of the views")
    parser.add_argument("--cell", type=int, default=224, help="width of a cell in pixels")
    parser.add_argument("--release", action="store_true", help="the release's strengths in place of the severities")
    args = parser.parse_args()
    image = load_image(args.image) if args.image else Image.fromarray(draw_content(args.content))
    draw = release_sheet if args.release else contact_sheet
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw(image, seed=args.seed, cell=args.cell).save(args.out, quality=80)
    print(f"{args.out}: {args.out.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
