"""
Memory and speed of `q-hawkeye prepare`, against the size of the set and a loop that only decodes.

    python benchmarks/prepare.py
    python benchmarks/prepare.py --sizes 1000 10000 --embed

Write sets of JPEG images of 512 x 384 in SPAQ's layout into a temporary folder, prepare each in its own process and
print its peak memory, the ratio of the largest set to the smallest, and the images a second beside a plain loop that
decodes the same files with Pillow.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from openpyxl import Workbook
from PIL import Image

SIZE = (512, 384)

# Peak memory of the process itself, and the time without its start.
CHILD = """
import json, resource, sys, time
from q_hawkeye_trl.data.preparation import prepare
from q_hawkeye_trl.data.readers import READERS
root, out, embed = sys.argv[1:4]
began = time.perf_counter()
labels = READERS["spaq"](__import__("pathlib").Path(root))
read = time.perf_counter()
prepare(labels, out, embed=embed == "True", workers=1)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"labels": read - began, "images": time.perf_counter() - read, "peak": peak}))
"""


def write_set(root: Path, count: int) -> list[Path]:
    """Write `count` different images, smooth like photographs, and SPAQ's label file."""
    (root / "TestImage").mkdir(parents=True)
    (root / "Annotations").mkdir()
    rng, book = np.random.default_rng(0), Workbook(write_only=True)
    sheet = book.create_sheet()
    sheet.append(["Image name", "MOS"])
    paths = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        paths.append(root / "TestImage" / f"{number:05}.jpg")
        coarse.resize(SIZE, Image.Resampling.BICUBIC).save(paths[-1], quality=90)
        sheet.append([paths[-1].name, number % 97 + 1.5])
    book.save(root / "Annotations" / "MOS and Image attribute scores.xlsx")
    return paths


def decode_all(paths: list[Path]) -> float:
    """Return the seconds of a plain loop that decodes every file."""
    began = time.perf_counter()
    for path in paths:
        with Image.open(path) as image:
            image.convert("RGB")
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000], help="images a set, increasing")
    parser.add_argument("--embed", action="store_true", help="copy the files into the folder")
    arguments = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("datasets", "pyarrow", "pillow"))
    print(f"{packages}, Python {platform.python_version()}, {platform.machine()}, embed {arguments.embed}")
    print("images   peak MB   labels s   images s   images/s   decoding alone, images/s")
    peaks = []
    for count in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            paths = write_set(Path(folder) / "spaq", count)
            bound = decode_all(paths)
            command = [sys.executable, "-c", CHILD, f"{folder}/spaq", f"{folder}/out", str(arguments.embed)]
            process = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(process.stdout.splitlines()[-1])
        peaks.append(found["peak"])
        print(
            f"{count:6}   {found['peak']:7.0f}   {found['labels']:8.2f}   {found['images']:8.2f}   "
            f"{count / found['images']:8.0f}   {count / bound:8.0f}"
        )
    print(f"memory, largest set to smallest: {peaks[-1] / peaks[0]:.3f}")


if __name__ == "__main__":
    main()
