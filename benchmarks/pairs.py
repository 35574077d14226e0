"""
Speed and memory of `q-hawkeye pair`.

    OMP_NUM_THREADS=1 python benchmarks/pairs.py            speed with 1 and 2 workers, then memory
    OMP_NUM_THREADS=1 python benchmarks/pairs.py --images 100 --memory_images 100 1000

The bound does only what every pair needs: decode the file, apply the degradation, measure SSIM and PSNR, and encode
the view as PNG, by plain Pillow, numpy and scikit-image. It computes no hashes and writes nothing.
Two other loops are timed beside it: the bound without the measurement, and a straight loop that decodes, degrades and
saves with Pillow's defaults. All apply the degradations that the run drew, second ones included. Rates are images per
second, the best of `--repeats` rounds.
"""

import argparse
import io
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from datasets import Dataset, disable_progress_bars
from datasets import Image as ImageFeature
from PIL import Image

from q_hawkeye_trl.data.degradations import apply_step, degradation_steps, degrade
from q_hawkeye_trl.demo.contents import draw_content
from q_hawkeye_trl.pairs.distance import measure_distance
from q_hawkeye_trl.pairs.pair_manifest import read_manifest

SIZE = (512, 384)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="images of the speed measurement, 512 x 384")
    parser.add_argument("--loop_images", type=int, default=200, help="number of these in the plain loops")
    parser.add_argument("--memory_images", type=int, nargs="*", default=[1000, 10000], help="images of 112 x 84")
    parser.add_argument("--repeats", type=int, default=2, help="rounds; the fastest counts")
    parser.add_argument("--degradations", default="release", help="as for q-hawkeye pair")
    args = parser.parse_args()
    disable_progress_bars()
    packages = ("q-hawkeye-trl", "numpy", "pillow", "scikit-image", "datasets")
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    print(", ".join(f"{name} {version(name)}" for name in packages))
    with tempfile.TemporaryDirectory() as folder:
        if args.images:
            speed(Path(folder), args)
        if args.memory_images:
            memory(Path(folder), args)


def speed(folder: Path, args: argparse.Namespace) -> None:
    """Measure and print the rates."""
    files = write_images(folder / "images", args.images, SIZE)
    save_data(folder / "data", files)
    rates: dict[str, float] = {}
    for round_ in range(args.repeats):
        for workers in (1, 2):
            out = folder / f"pairs-{round_}-{workers}"
            seconds = run(folder / "data", out, workers, args.degradations)
            keep_best(rates, f"q-hawkeye pair, {workers} worker{'s' * (workers > 1)}", args.images / seconds)
        lines = read_manifest(out).to_pylist()[: args.loop_images]
        for name, loop in (("bound", bound), ("bound without measuring", unmeasured), ("straight loop", straight)):
            started = time.perf_counter()
            for line, file in zip(lines, files, strict=False):
                loop(file, line, folder / "view.png")
            keep_best(rates, name, len(lines) / (time.perf_counter() - started))
    strengthened = sum(line["stage"] == "strengthened" for line in lines)
    print(f"\n{args.images} images of {SIZE[0]} x {SIZE[1]}, {strengthened} of {len(lines)} strengthened")
    for name, rate in rates.items():
        print(f"{name:<28} {rate:7.1f} images/s")
    one, two = rates["q-hawkeye pair, 1 worker"], rates["q-hawkeye pair, 2 workers"]
    for name in ("bound", "bound without measuring", "straight loop"):
        print(f"1 worker / {name:<24} {one / rates[name]:.2f}")
    print(f"2 workers / 1 worker               {two / one:.2f}")


def memory(folder: Path, args: argparse.Namespace) -> None:
    """Measure and print the peak of anonymous memory of a run with one worker."""
    print()
    for images in args.memory_images:
        files = write_images(folder / f"small-{images}", images, (112, 84))
        save_data(folder / f"small-data-{images}", files)
        peaks: list[int] = []
        run(folder / f"small-data-{images}", folder / f"small-pairs-{images}", 1, args.degradations, peaks)
        print(f"{images:>6} images of 112 x 84: {max(peaks) / 1024:.0f} MiB at most")


def run(data: Path, out: Path, workers: int, degradations: str, peaks: list[int] | None = None) -> float:
    """Run the command in its own process and return its seconds, start included."""
    command = [sys.executable, "-m", "q_hawkeye_trl", "pair", "--data", str(data), "--out", str(out)]
    command += ["--workers", str(workers), "--degradations", degradations]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            time.sleep(0.02 if peaks is None else 0.1)
            if peaks is not None:
                peaks.append(anonymous_kib(process.pid))
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed")
    return time.perf_counter() - started


def anonymous_kib(pid: int) -> int:
    """Anonymous memory of a process in KiB; mapped data files don't count."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return int(lines.get("RssAnon", "0").split()[0])


def bound(file: str, line: dict, path: Path) -> None:
    """Decode, degrade, measure and encode in memory; twice if the run strengthened the pair."""
    original = decoded(file)
    view = original
    for step in degradation_steps(line["operation"], min(original.shape[:2]), line["view_seed"]):
        view = apply_step(view, step, line["view_seed"])
        measure_distance(original, view)
    Image.fromarray(view).save(io.BytesIO(), "PNG", compress_level=1)


def unmeasured(file: str, line: dict, path: Path) -> None:
    """The bound without SSIM and PSNR."""
    view = original = decoded(file)
    for step in degradation_steps(line["operation"], min(original.shape[:2]), line["view_seed"]):
        view = apply_step(view, step, line["view_seed"])
    Image.fromarray(view).save(io.BytesIO(), "PNG", compress_level=1)


def straight(file: str, line: dict, path: Path) -> None:
    """Decode, degrade and save with Pillow's defaults."""
    with Image.open(file) as image:
        degrade(image, line["operation"], line["view_seed"]).save(path)


def decoded(file: str) -> np.ndarray:
    with Image.open(file) as image:
        return np.array(image.convert("RGB"))


def keep_best(rates: dict[str, float], name: str, rate: float) -> None:
    rates[name] = max(rate, rates.get(name, 0.0))


def write_images(folder: Path, count: int, size: tuple[int, int]) -> list[str]:
    """Write JPEG files of procedural pictures, each different."""
    folder.mkdir()
    contents: list[Callable[[], np.ndarray]] = [lambda seed=seed: draw_content(seed) for seed in range(40)]
    pictures = [Image.fromarray(content()).resize(size, Image.Resampling.BICUBIC) for content in contents]
    files = []
    for number in range(count):
        picture = np.roll(np.array(pictures[number % len(pictures)]), number // len(pictures), axis=1)
        files.append(str(folder / f"{number:06d}.jpg"))
        Image.fromarray(picture).save(files[-1], quality=92)
    return files


def save_data(folder: Path, files: list[str]) -> None:
    """Save a `datasets` folder of these files."""
    columns = {"image": files, "image_id": [Path(file).name for file in files], "mos": [3.0] * len(files)}
    Dataset.from_dict(columns).cast_column("image", ImageFeature()).save_to_disk(folder)


if __name__ == "__main__":
    main()
