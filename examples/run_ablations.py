"""
Trains a set of recipes over the same seeds and compares them: a table with intervals, differences to the first recipe
paired by seed, learning curves and a page.

    python examples/run_ablations.py
    python examples/run_ablations.py --recipes recipes/ablations/grpo.yaml recipes/ablations/alpha_*.yaml --seeds 0 1 2
    python examples/run_ablations.py --base recipes/koniq/qwen2_5_vl_7b_lora.yaml --data_dir PATH/koniq10k \
        --launch "accelerate launch --config_file recipes/accelerate/ddp.yaml" --output_dir runs/ablations-7b

Without options it runs GRPO, + uncertainty, + perception and both on the embedded default. Options that it does not
know go to every run, for example `--max_steps 20`. Interrupt it and run it again: what is finished is not done twice,
and a run that left a checkpoint goes on from there. One that fails is named and does not stop the others. Results of
other options or of another version of a recipe are not mixed in: name another --output_dir for these.
"""

import argparse
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

from q_hawkeye_trl.ablations import Run, ablation_page, plot_ablations, results_csv
from q_hawkeye_trl.checkpointing.checkpoint_files import last_complete_checkpoint
from q_hawkeye_trl.files import write_atomically, write_json
from q_hawkeye_trl.run_facts.settings import hide_secret_options, hide_secrets
from q_hawkeye_trl.train.arguments import recipe_parser
from q_hawkeye_trl.train.callbacks import METRICS_FILE, read_metrics
from q_hawkeye_trl.train.recipes import merge_chain, recipe_chain

FOLDER = Path(__file__).parents[1] / "recipes" / "ablations"
DEFAULT = [FOLDER / f"{name}.yaml" for name in ("grpo", "uncertainty", "perception", "full")]
SCRIPT = Path(__file__).with_name("train_koniq.py")
OURS = ("--config", "--output_dir", "--seed", "--resume_from_checkpoint")  # what this script says to each run


def main() -> None:
    args, passed_on = parse_arguments()
    options = hide_secret_options(passed_on)
    plans = {
        name: {"recipe": hide_secrets(resolved(path, passed_on)), "options": options}
        for name, path in args.recipes.items()
    }
    jobs = [Job(args, name, seed, plans[name], passed_on) for seed in args.seeds for name in args.recipes]
    refuse_other_results(jobs)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    if not names_data(passed_on):
        write_synthetic_data(args)
    failures = run_all([job for job in jobs if not job.is_finished()], args.jobs)
    report(args, jobs, failures)
    if failures:
        sys.exit(1)


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """Reads the command line; what is not known here belongs to the training script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--recipes", type=Path, nargs="+", default=DEFAULT, help="Recipes; the first is the baseline.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="Training seeds.")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/ablations"), help="Folder for runs and page.")
    parser.add_argument("--baseline", help="Name of another recipe to compare with, without folder and .yaml.")
    parser.add_argument("--jobs", type=int, default=1, help="Runs at a time, sharing the cores.")
    parser.add_argument("--launch", default=sys.executable, help="What starts the training script.")
    parser.add_argument(
        "--unseen", action="store_true", help="Measure also on distortions that the synthetic set keeps from training."
    )
    args, passed_on = parser.parse_known_args()
    for word in passed_on:
        if word.split("=")[0] in OURS:
            parser.error(
                f"{word.split('=')[0]} is set for each run by this script (--recipes, --seeds, --output_dir)."
            )
    if args.unseen and names_data(passed_on):
        parser.error("--unseen measures the synthetic set; leave it out with data of your own.")
    names = [path.stem for path in args.recipes]
    twice = {name for name in names if names.count(name) > 1}
    if twice or len(set(args.seeds)) < len(args.seeds):
        parser.error(f"named twice: {', '.join(sorted(twice)) or 'a seed'}; every run needs a name of its own.")
    args.recipes = dict(zip(names, args.recipes, strict=True))
    args.baseline = args.baseline or names[0]
    if args.baseline not in names:
        parser.error(f"--baseline {args.baseline} is not among the recipes {', '.join(names)}.")
    return args, passed_on


def names_data(options: Sequence[str]) -> bool:
    return any(word.split("=")[0] in ("--data_dir", "--dataset", "--synthetic_dir") for word in options)


def resolved(path: Path, passed_on: list[str]) -> dict:
    """The keys of a recipe and of its bases, so that a recipe that has changed since is noticed."""
    return merge_chain(recipe_chain(path, base=recipe_parser().parse_known_args(passed_on)[0].base))


class Job:
    """One training: its folder, its record beside it (`seed-0.json`), and its log."""

    def __init__(self, args: argparse.Namespace, name: str, seed: int, plan: dict, passed_on: list[str]):
        self.name, self.seed, self.plan, self.unseen = name, seed, plan, args.unseen
        self.folder = args.output_dir / name / f"seed-{seed}"
        self.record, self.log = self.folder.with_suffix(".json"), self.folder.with_suffix(".log")
        self.data = args.output_dir / "data"
        options = ["--config", str(args.recipes[name]), "--output_dir", str(self.folder), "--seed", str(seed)]
        # the last model of each run, not the best of several
        options += ["--synthetic_dir", str(self.data / "seen"), "--keep_best", "false", *passed_on]
        self.command = [*shlex.split(args.launch), str(SCRIPT), *options]
        threads = str(max(1, (os.cpu_count() or 1) // args.jobs))
        self.environment = {"OMP_NUM_THREADS": threads} | os.environ

    def recorded(self) -> dict:
        return json.loads(self.record.read_text()) if self.record.is_file() else {}

    def is_finished(self) -> bool:
        figures = self.recorded().get("figures", {})
        return "after" in figures and ("unseen" in figures or not self.unseen)

    def has_checkpoint(self) -> bool:
        try:
            return self.folder.exists() and last_complete_checkpoint(self.folder) is not None
        except FileNotFoundError:
            return False

    def run(self, running: dict["Job", subprocess.Popen]) -> None:
        """Trains, or goes on, and records the figures; `RuntimeError` with the log's last line if that fails."""
        started, record = time.time(), self.recorded()
        if "after" not in record.get("figures", {}):
            command = [*self.command, *self.make_room()]
            write_json(self.record, self.plan)
            with open(self.log, "a") as log:
                running[self] = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment)
                status = running[self].wait()
            if status != 0:
                raise RuntimeError(f"{last_line(self.log)} (status {status}, log {self.log})")
            summary = json.loads((self.folder / "summary.json").read_text())
            record = self.plan | {"figures": {key: summary[key] for key in ("before", "after")}}
            record["seconds"] = round(time.time() - started, 1)
            write_json(self.record, record)
        if self.unseen:
            record["figures"]["unseen"] = score_unseen(self.folder, self.data / "unseen")
            write_json(self.record, record)

    def make_room(self) -> list[str]:
        """What a run that was cut off needs: it goes on from its checkpoint; without one its folder is moved aside."""
        if not self.folder.exists():
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            return []
        if self.has_checkpoint():
            return ["--resume_from_checkpoint", "true"]
        number = 1
        while (aside := self.folder.with_name(f"{self.folder.name}.unfinished-{number}")).exists():
            number += 1
        self.folder.rename(aside)
        return []

    def step(self) -> int:
        """The last step that was logged."""
        lines = read_metrics(self.folder / METRICS_FILE)
        return lines[-1]["step"] if lines else 0


def refuse_other_results(jobs: Sequence[Job]) -> None:
    """
    Stops before anything is run if a run in the folder has figures, or a checkpoint, that something else led to. What
    ended before it had either, as with a misspelt option, begins again.
    """
    for job in jobs:
        record = job.recorded()
        if "figures" not in record and not job.has_checkpoint():
            continue
        for what in ("options", "recipe"):
            if record and record[what] != job.plan[what]:
                sys.exit(
                    f"run_ablations.py: {job.record} was made with another {what.removesuffix('s')}: {record[what]}, "
                    f"now {job.plan[what]}; name another --output_dir, or remove that file and {job.folder}."
                )


def write_synthetic_data(args: argparse.Namespace) -> None:
    from q_hawkeye_trl.demo.synthetic import UNSEEN_KINDS, write_synthetic_koniq

    write_synthetic_koniq(args.output_dir / "data" / "seen")
    if args.unseen:
        write_synthetic_koniq(args.output_dir / "data" / "unseen", seed=7, kinds=UNSEEN_KINDS, train=1, validation=1)


def score_unseen(folder: Path, data: Path) -> dict[str, float]:
    """Measures a finished run on distortions that it has never met."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from q_hawkeye_trl.data.koniq import load_koniq
    from q_hawkeye_trl.evaluation.held_out import evaluate_held_out

    rows = load_koniq(data, "test")
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    return evaluate_held_out(model, processor, rows["image"], rows["mos"], progress=False)


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def run_all(jobs: Sequence[Job], at_a_time: int) -> dict[tuple[str, int], str]:
    """Runs the jobs, shows how far they are, and returns why some failed."""
    failures: dict[tuple[str, int], str] = {}
    running: dict[Job, subprocess.Popen] = {}
    started = time.time()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("run_ablations.py: stopped; the same command goes on."))
    pool = ThreadPoolExecutor(at_a_time)
    futures: dict[Future, Job] = {pool.submit(job.run, running): job for job in jobs}
    open_futures = set(futures)
    try:
        with tqdm(total=len(jobs), unit="run", disable=None if jobs else True) as bar:  # none in a log file
            while open_futures:
                done, open_futures = wait(open_futures, timeout=2, return_when=FIRST_COMPLETED)
                for future in done:
                    job = futures[future]
                    if error := future.exception():
                        failures[job.name, job.seed] = str(error)
                    bar.update()
                    left = len(open_futures)
                    bar.write(f"{job.name}, seed {job.seed}: {error or 'done'}{time_left(started, len(jobs), left)}")
                now = [job for job, process in list(running.items()) if process.poll() is None]
                bar.set_postfix_str(", ".join(f"{job.name} seed {job.seed} step {job.step()}" for job in now))
    except (KeyboardInterrupt, SystemExit):
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(running.values()):
            process.terminate()
        raise
    pool.shutdown()
    return failures


def time_left(started: float, total: int, left: int) -> str:
    return f"; {left} left, about {(time.time() - started) / (total - left) * left / 60:.0f} min" if left else ""


def report(args: argparse.Namespace, jobs: Sequence[Job], failures: dict[tuple[str, int], str]) -> None:
    """Writes the page, the table of all figures and the curves, and prints the page."""
    runs = [
        Run(job.name, job.seed, job.recorded()["figures"], read_metrics(job.folder / METRICS_FILE))
        for name in args.recipes
        for job in jobs
        if job.name == name and job.is_finished()
    ]
    has_curves = plot_ablations(runs, args.output_dir / "curves.png")
    facts = {
        "seeds": ", ".join(map(str, args.seeds)),
        "options": shlex.join(jobs[0].plan["options"]) or "those of the recipes",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("q-hawkeye-trl", "trl", "transformers", "torch")),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
    text = ablation_page(
        runs,
        {name: what_it_is(path) for name, path in args.recipes.items()},
        baseline=args.baseline,
        failures=failures,
        facts=facts,
        curves="curves.png" if has_curves else None,
    )
    write_atomically(args.output_dir / "ablations.md", text)
    write_atomically(args.output_dir / "results.csv", results_csv(runs))
    print(f"\n{text}\nIn {args.output_dir}: ablations.md, results.csv, curves.png and a folder a recipe.")


def what_it_is(path: Path) -> str:
    """The first sentence of a recipe's header."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip("# ") == "" or not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines).split(". ")[0].rstrip(".")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("run_ablations.py: interrupted; the same command goes on.")
    except (ValueError, OSError) as error:
        sys.exit(f"run_ablations.py: {error}")
