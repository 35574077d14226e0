"""
Compares four arms over several seeds on the embedded default: GRPO, + uncertainty, + perception, both. All arms of a
seed share the start, the data order and the budget. Held-out images come from the kinds of distortion that the policy
has seen in training, and from kinds that it has seen nowhere.

    python examples/compare_arms.py --output_dir runs/arms --seeds 0 1 2 3 4 --jobs 2

Interrupt it and run it again: what is finished is not done twice. Options that the script does not know go to every
run, for example `--max_steps 20`.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from scipy import stats
from transformers import AutoModelForImageTextToText, AutoProcessor

from q_hawkeye_trl.data.koniq import load_koniq
from q_hawkeye_trl.demo.synthetic import UNSEEN_KINDS, write_synthetic_koniq
from q_hawkeye_trl.evaluation.held_out import evaluate_held_out
from q_hawkeye_trl.files import write_atomically, write_json

NO_UNCERTAINTY = ["--uncertainty_alpha", "0"]
NO_PERCEPTION = ["--perception_gamma", "0", "--entropy_original_coef", "0", "--entropy_degraded_coef", "0"]
ARMS = {
    "grpo": [*NO_UNCERTAINTY, *NO_PERCEPTION],
    "uncertainty": NO_PERCEPTION,
    "perception": NO_UNCERTAINTY,
    "both": [],
}
BASELINE = "grpo"
FIGURES = ("srcc_sampled", "srcc_greedy", "plcc_sampled", "spread")
SCRIPT = Path(__file__).with_name("train_koniq.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/arms"), help="Folder for runs and tables.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="Training seeds.")
    parser.add_argument("--jobs", type=int, default=1, help="Runs at a time, sharing the cores.")
    args, passed_on = parser.parse_known_args()

    seen, unseen = args.output_dir / "data" / "seen", args.output_dir / "data" / "unseen"
    write_synthetic_koniq(seen)
    write_synthetic_koniq(unseen, seed=7, kinds=UNSEEN_KINDS, train=1, validation=1)
    jobs = [(arm, seed) for seed in args.seeds for arm in ARMS]
    with ThreadPoolExecutor(args.jobs) as pool:
        done = pool.map(lambda job: run_arm(*job, args, seen, unseen, passed_on), jobs)
        results = dict(zip(jobs, done, strict=True))
    write_atomically(args.output_dir / "arms.md", tables(results, args.seeds))
    print((args.output_dir / "arms.md").read_text())


def run_arm(arm: str, seed: int, args: argparse.Namespace, seen: Path, unseen: Path, passed_on: list[str]) -> dict:
    """Trains one arm with one seed, unless it was done before, and returns its figures on both sets."""
    folder = args.output_dir / arm / f"seed-{seed}"
    result = folder / "arm.json"
    options = ["--data_dir", str(seen), "--output_dir", str(folder), "--seed", str(seed), *ARMS[arm]]
    options += ["--validate", "false", *passed_on]  # the last model of each arm, not the best of several
    if result.is_file() and (made := json.loads(result.read_text())["options"]) != options:
        raise ValueError(f"{result} was made with {' '.join(made)}; name another --output_dir for other options.")
    if not result.is_file():
        if folder.exists():  # cut off before its end: begun again, the old one kept
            folder.rename(unused_name(folder))
        log = args.output_dir / f"{arm}-{seed}.log"
        print(f"{arm}, seed {seed}: log in {log}", flush=True)
        environment = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // args.jobs))}
        with open(log, "w") as file:
            command = [sys.executable, str(SCRIPT), *options]
            subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=True)
        summary = json.loads((folder / "summary.json").read_text())
        figures = {"before": summary["before"], "seen": summary["after"], "unseen": score_unseen(folder, unseen)}
        write_json(result, figures | {"options": options})
    return json.loads(result.read_text())


def score_unseen(folder: Path, data: Path) -> dict[str, float]:
    """Measures a finished run on distortions that it has never met."""
    rows = load_koniq(data, "test")
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    return evaluate_held_out(model, processor, rows["image"], rows["mos"], progress=False)


def unused_name(folder: Path) -> Path:
    number = 1
    while (candidate := folder.with_name(f"{folder.name}.unfinished-{number}")).exists():
        number += 1
    return candidate


def tables(results: dict[tuple[str, int], dict], seeds: Sequence[int]) -> str:
    """Markdown tables: the mean of each arm, and its paired differences to the baseline with 95% t intervals."""
    lines = []
    for data in ("seen", "unseen"):
        lines += [
            f"Distortions {data} in training, {len(seeds)} seeds: mean, and difference to {BASELINE} [95% t].",
            "",
        ]
        lines += ["| arm | " + " | ".join(FIGURES) + " |", "|---" * (len(FIGURES) + 1) + "|"]
        for arm in ARMS:
            cells = []
            for figure in FIGURES:
                values = np.array([results[arm, seed][data][figure] for seed in seeds])
                base = np.array([results[BASELINE, seed][data][figure] for seed in seeds])
                cells.append(f"{values.mean():.3f}" + ("" if arm == BASELINE else f" ({interval(values - base)})"))
            lines.append(f"| {arm} | " + " | ".join(cells) + " |")
        lines += ["", f"Difference to {BASELINE} in srcc_sampled by seed ({', '.join(map(str, seeds))}):", ""]
        for arm in ARMS:
            if arm != BASELINE:
                differences = [
                    results[arm, s][data]["srcc_sampled"] - results[BASELINE, s][data]["srcc_sampled"] for s in seeds
                ]
                lines.append(f"- {arm}: " + ", ".join(f"{d:+.3f}" for d in differences))
        lines.append("")
    return "\n".join(lines)


def interval(differences: np.ndarray) -> str:
    """Mean difference with its 95% t interval, or without where one seed allows none."""
    mean = differences.mean()
    if len(differences) < 2:
        return f"{mean:+.3f}"
    half = stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences)
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


if __name__ == "__main__":
    main()
