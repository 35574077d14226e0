"""
Images a second of `HawkeyeScorer` against a plain transformers loop, and its memory from 100 to 10,000 images.

    python benchmarks/scoring.py
    python benchmarks/scoring.py --images 100 --skip-memory

The plain loop is the usual inference script: open an image, run the processor, call `model.generate`, parse, next
image. For K answers it calls `generate` K times; as a harder mark it calls it once with `num_return_sequences=K`,
which encodes the prompt K times in one batch. The bundled policy sees 12 image tokens in a prompt of 39; since real
policies see about 1,000, the rows are repeated with the pictures enlarged to 192. All rows run in one process after
the other on the same files, so only ratios are worth keeping. Model: the bundled policy, float32, on the CPU;
elsewhere by --device.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from PIL import Image

from q_hawkeye_trl.demo.policy import demo_policy_path
from q_hawkeye_trl.demo.synthetic import IMAGE_FOLDER, write_synthetic_koniq
from q_hawkeye_trl.scoring.policy import load_policy
from q_hawkeye_trl.scoring.scorer import HawkeyeScorer
from q_hawkeye_trl.text import QUALITY_PROMPT, parse_score

LONGEST = 64


def plain_loop(model, processor, files: list[Path], *, calls: int, **options) -> list[list[float | None]]:
    """The usual inference script: an image at a time, with `calls` calls of `generate` for each."""
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUALITY_PROMPT}]}]
    scores = []
    for file in files:
        image = Image.open(file).convert("RGB")
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = processor(text=[text], images=[image], return_tensors="pt").to(model.device)
        answers = []
        for _ in range(calls):
            with torch.no_grad():
                output = model.generate(**inputs, max_new_tokens=LONGEST, **options)
            answers += processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        scores.append([parse_score(answer) for answer in answers])
    return scores


def timed(run: Callable[[], list], images: int) -> tuple[float, list]:
    """Seconds an image, and what the run returned."""
    start = time.perf_counter()
    result = run()
    return (time.perf_counter() - start) / images, result


def enlarged(files: list[Path], folder: Path) -> list[Path]:
    """Writes the pictures at four times their side."""
    folder.mkdir()
    for file in files:
        image = Image.open(file)
        image.resize((4 * image.width, 4 * image.height), Image.Resampling.BICUBIC).save(folder / file.name)
    return sorted(folder.iterdir())


def speed(files: list[Path], rollouts: int, device: str, max_pixels: int | None = None) -> dict[str, float]:
    """Measures all rows on the same files; returns images a second and ratios."""
    model, processor = load_policy(demo_policy_path(), device=device, max_pixels=max_pixels)
    sampling = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    plain = {
        "greedy, plain loop": {"calls": 1, "do_sample": False},
        f"{rollouts} rollouts, plain loop, a call for each": {"calls": rollouts, **sampling},
        f"{rollouts} rollouts, plain loop, num_return_sequences": {
            "calls": 1,
            "num_return_sequences": rollouts,
            **sampling,
        },
    }
    ours = {
        "greedy, HawkeyeScorer": HawkeyeScorer(model, processor, max_new_tokens=LONGEST),
        f"{rollouts} rollouts, HawkeyeScorer": HawkeyeScorer(
            model, processor, rollouts=rollouts, max_new_tokens=LONGEST
        ),
    }
    seconds: dict[str, float] = {}
    results: dict[str, list] = {}
    for name, options in plain.items():
        plain_loop(model, processor, files[:3], **options)  # warm
        part = files if options["calls"] == 1 else files[: max(1, len(files) // 4)]  # the slow row on fewer
        seconds[name], results[name] = timed(
            lambda part=part, options=options: plain_loop(model, processor, part, **options), len(part)
        )
    for name, scorer in ours.items():
        scorer.score(files[:128])
        seconds[name], results[name] = timed(lambda scorer=scorer: scorer.score(files), len(files))
        print(f"{scorer.answer_batch.decoded_again} rows decoded again alone: {name}")
    greedy, many = ours
    same = sum(
        list(each.rollouts) == scores
        for each, scores in zip(results[greedy], results["greedy, plain loop"], strict=True)
    )
    figures = {f"{name}, images/s": 1 / value for name, value in seconds.items()}
    for name in plain:
        figures[f"ratio to: {name}"] = seconds[name] / seconds[greedy if name.startswith("greedy") else many]
    figures["share of greedy scores equal to the plain loop's"] = same / len(files)
    return figures


def peak_memory(folder: Path, out: Path) -> float:
    """
    Runs `q-hawkeye score` on a folder in a process of its own; returns its largest resident size in MiB. (Not
    `ru_maxrss`: that starts from the size of the parent.)
    """
    code = (
        "import re, sys\n"
        "from q_hawkeye_trl.cli import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read()).group(1))\n"
    )
    arguments = ["score", str(folder), "--out", str(out), "--html", str(out.with_suffix(".html"))]
    arguments += ["--max-new-tokens", str(LONGEST)]
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    return int(process.stdout.splitlines()[-1]) / 1024


def memory(files: list[Path], counts: tuple[int, ...], folder: Path) -> dict[str, float]:
    """Peak memory by number of images; the files are linked under as many names as needed."""
    figures = {}
    for count in counts:
        images = folder / f"{count}"
        images.mkdir()
        for number in range(count):
            os.link(files[number % len(files)], images / f"{number:06}.png")
        figures[f"peak memory at {count} images, MiB"] = peak_memory(images, folder / f"{count}.jsonl")
    first, *_, last = figures.values()
    return figures | {f"ratio of memory, {counts[-1]} to {counts[0]} images": last / first}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400, help="images of the speed rows")
    parser.add_argument("--rollouts", type=int, default=8, help="K")
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 1000, 10_000], help="images of the memory rows")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--json", help="file for the figures")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {versions}")
    with tempfile.TemporaryDirectory() as name:
        root = write_synthetic_koniq(Path(name) / "set", train=0, validation=0, test=options.images, progress=False)
        files = sorted((root / IMAGE_FOLDER).iterdir())
        figures = speed(files, options.rollouts, options.device)
        large = enlarged(files[: max(8, len(files) // 8)], Path(name) / "large")
        for label, value in speed(large, options.rollouts, options.device, max_pixels=448 * 336).items():
            figures[f"192 image tokens: {label}"] = value
        if not options.skip_memory:
            figures |= memory(files, tuple(options.counts), Path(name))
    for label, value in figures.items():
        print(f"{label:<80} {value:>10.2f}")
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
