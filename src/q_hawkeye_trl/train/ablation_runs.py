"""`q-hawkeye ablate`: trains several recipes over the same seeds and compares them on one page."""

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
from itertools import count
from pathlib import Path

from tqdm import tqdm

from ..io.atomic import write_json, write_text
from ..run_facts.machine import usable_cores
from ..run_facts.settings import hide_secret_options, hide_secrets
from .ablation_page import Run, ablation_page, plot_ablations, results_csv
from .recipes import find_recipe, merge_chain, recipe_chain, recipe_parser
from .run_folder import METRICS_FILE, read_metrics

PROGRAM = "q-hawkeye ablate"
DESCRIPTION = """\
Train several recipes over the same seeds and compare them: means with intervals, differences to the first recipe
paired by seed, learning curves, and a page.

  q-hawkeye ablate
  q-hawkeye ablate --recipes ablations/grpo ablations/alpha_2 --seeds 0 1 2
  q-hawkeye ablate --base koniq/qwen2_5_vl_7b_lora --data_dir PATH/koniq10k --accelerate_config ddp

Without options this compares GRPO, + uncertainty, + perception and both on the bundled default. Other options are
passed to every `q-hawkeye train`. The same command resumes after an interruption: finished runs are kept, and a run
with a checkpoint resumes from it. A failed run is reported and does not stop the others."""
DEFAULT = ["ablations/grpo", "ablations/uncertainty", "ablations/perception", "ablations/full"]
_SET_HERE = ("--config", "--output_dir", "--seed", "--resume_from_checkpoint")


def main(argv: Sequence[str]) -> None:
    """
    Run `q-hawkeye ablate`; exit with status 1 if a run failed.

    Args:
        argv (`Sequence[str]`):
            Words after `ablate`.
    """
    try:
        _main(argv)
    except KeyboardInterrupt:
        sys.exit(f"{PROGRAM}: interrupted; the same command resumes.")
    except (ValueError, OSError) as error:
        sys.exit(f"{PROGRAM}: {error}")


def _main(argv: Sequence[str]) -> None:
    args, passed_on = parse_ablation_arguments(argv)
    plans = {name: _plan(path, passed_on) for name, path in args.recipes.items()}
    jobs = [Job(args, name, seed, plans[name], passed_on) for seed in args.seeds for name in args.recipes]
    for job in jobs:
        job.refuse_other_results()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    if not _names_data(passed_on):
        _write_synthetic_data(args)
    failures = _run_all([job for job in jobs if not job.is_finished()], args.jobs)
    _report(args, jobs, failures)
    if failures:
        sys.exit(1)


def parse_ablation_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """
    Read the command line of `q-hawkeye ablate`.

    Args:
        argv (`Sequence[str]`):
            Words after `ablate`.

    Returns:
        `tuple[argparse.Namespace, list[str]]`: Its own options, with `recipes` as a mapping of names to files, and
        the words that are passed to every training.
    """
    parser = argparse.ArgumentParser(
        PROGRAM, description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--recipes", nargs="+", default=DEFAULT, metavar="NAME|FILE", help="Recipes; the first is the baseline."
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="Training seeds.")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/ablations"), help="Folder of runs and page.")
    parser.add_argument("--baseline", help="Name of another recipe to compare with, without folder and .yaml.")
    parser.add_argument("--jobs", type=int, default=1, help="Runs at a time, which share the cores.")
    parser.add_argument("--launch", default=sys.executable, help="What starts a training, instead of Python itself.")
    parser.add_argument(
        "--unseen", action="store_true", help="Measure also on distortions that the synthetic set keeps from training."
    )
    args, passed_on = parser.parse_known_args(argv)
    for word in passed_on:
        if word.split("=")[0] in _SET_HERE:
            parser.error(f"{word.split('=')[0]} is set for each run; use --recipes, --seeds and --output_dir.")
    if args.unseen and _names_data(passed_on):
        parser.error("--unseen measures the synthetic set; leave it out with data of your own.")
    paths = [find_recipe(name) for name in args.recipes]
    names = [path.stem for path in paths]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated or len(set(args.seeds)) < len(args.seeds):
        parser.error(f"repeated: {', '.join(sorted(repeated)) or 'a seed'}; every run needs its own name.")
    args.recipes = dict(zip(names, paths, strict=True))
    args.baseline = args.baseline or names[0]
    if args.baseline not in names:
        parser.error(f"--baseline {args.baseline} is not among the recipes {', '.join(names)}.")
    return args, passed_on


def _names_data(words: Sequence[str]) -> bool:
    return any(word.split("=")[0] in ("--data_dir", "--dataset", "--synthetic_dir") for word in words)


def _plan(path: Path, passed_on: Sequence[str]) -> dict:
    """What a run is made from: its resolved recipe and its options, without secrets."""
    base = recipe_parser().parse_known_args(passed_on)[0].base
    recipe = merge_chain(recipe_chain(path, base=base and find_recipe(base)))
    return {"recipe": hide_secrets(recipe), "options": hide_secret_options(passed_on)}


class Job:
    """One training: its folder, its record (`seed-0.json`) and its log."""

    def __init__(self, args: argparse.Namespace, name: str, seed: int, plan: dict, passed_on: Sequence[str]):
        self.name, self.seed, self.plan, self.unseen = name, seed, plan, args.unseen
        self.folder = args.output_dir / name / f"seed-{seed}"
        self.record, self.log = self.folder.with_suffix(".json"), self.folder.with_suffix(".log")
        self.data = args.output_dir / "data"
        options = ["--config", str(args.recipes[name]), "--output_dir", str(self.folder), "--seed", str(seed)]
        # the last model of each run, not the best of several
        options += ["--synthetic_dir", str(self.data / "seen"), "--keep_best", "false"]
        if args.jobs > 1 and int(os.environ.get("OMP_NUM_THREADS", "1")) == 1:
            options += ["--cpu_threads", str(max(1, usable_cores() // args.jobs))]
        self.command = [*shlex.split(args.launch), "-m", "q_hawkeye_trl", "train", *options, *passed_on]

    def recorded(self) -> dict:
        return json.loads(self.record.read_text()) if self.record.is_file() else {}

    def is_finished(self) -> bool:
        figures = self.recorded().get("figures", {})
        return "after" in figures and ("unseen" in figures or not self.unseen)

    def has_checkpoint(self) -> bool:
        from ..checkpointing.checkpoint_files import last_complete_checkpoint  # imports torch

        try:
            return self.folder.exists() and last_complete_checkpoint(self.folder) is not None
        except FileNotFoundError:
            return False

    def refuse_other_results(self) -> None:
        """Raise `ValueError` if there are figures or a checkpoint of other options or of another recipe."""
        record = self.recorded()
        if not record or ("figures" not in record and not self.has_checkpoint()):
            return
        for what in ("options", "recipe"):
            if record[what] != self.plan[what]:
                raise ValueError(
                    f"{self.record} was made with another {what.removesuffix('s')}: {record[what]}, now "
                    f"{self.plan[what]}; name another --output_dir, or remove that file and {self.folder}."
                )

    def run(self, running: dict["Job", subprocess.Popen]) -> None:
        """Train or resume, and record the figures; raise `RuntimeError` with the log's last line on failure."""
        started, record = time.time(), self.recorded()
        if "after" not in record.get("figures", {}):
            command = [*self.command, *self._resume_options()]
            write_json(self.record, self.plan)
            with open(self.log, "a") as log:
                running[self] = subprocess.Popen(command, stdout=log, stderr=log)
                status = running[self].wait()
            if status != 0:
                raise RuntimeError(f"{_last_line(self.log)} (status {status}, log {self.log})")
            summary = json.loads((self.folder / "summary.json").read_text())
            record = self.plan | {"figures": {key: summary[key] for key in ("before", "after")}}
            record["seconds"] = round(time.time() - started, 1)
            write_json(self.record, record)
        if self.unseen:
            record["figures"]["unseen"] = _score_unseen(self.folder, self.data / "unseen")
            write_json(self.record, record)

    def _resume_options(self) -> list[str]:
        """Resume from a checkpoint; without one, keep an unfinished folder under another name."""
        if not self.folder.exists():
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            return []
        if self.has_checkpoint():
            return ["--resume_from_checkpoint", "true"]
        names = (self.folder.with_name(f"{self.folder.name}.unfinished-{number}") for number in count(1))
        self.folder.rename(next(path for path in names if not path.exists()))
        return []

    def step(self) -> int:
        """The last step that was logged."""
        lines = read_metrics(self.folder / METRICS_FILE)
        return lines[-1]["step"] if lines else 0


def _write_synthetic_data(args: argparse.Namespace) -> None:
    from ..demo.synthetic import UNSEEN_KINDS, write_synthetic_koniq

    write_synthetic_koniq(args.output_dir / "data" / "seen")
    if args.unseen:
        write_synthetic_koniq(args.output_dir / "data" / "unseen", seed=7, kinds=UNSEEN_KINDS, train=1, validation=1)


def _score_unseen(folder: Path, data: Path) -> dict[str, float]:
    """Measure a finished run on distortions that it has not seen."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from ..data.koniq import load_koniq
    from ..evaluation.held_out import evaluate_held_out

    rows = load_koniq(data, "test")
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    return evaluate_held_out(model, processor, rows["image"], rows["mos"], progress=False)


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def _run_all(jobs: Sequence[Job], at_a_time: int) -> dict[tuple[str, int], str]:
    """Run the jobs, show their progress, and return why some failed."""
    failures: dict[tuple[str, int], str] = {}
    running: dict[Job, subprocess.Popen] = {}
    started = time.time()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(f"{PROGRAM}: stopped; the same command resumes."))
    pool = ThreadPoolExecutor(at_a_time)
    futures: dict[Future, Job] = {pool.submit(job.run, running): job for job in jobs}
    unfinished = set(futures)
    try:
        with tqdm(total=len(jobs), unit="run", disable=None if jobs else True) as bar:  # no bar in a log file
            while unfinished:
                done, unfinished = wait(unfinished, timeout=2, return_when=FIRST_COMPLETED)
                for future in done:
                    job, error, left = futures[future], future.exception(), len(unfinished)
                    if error:
                        failures[job.name, job.seed] = str(error)
                    bar.update()
                    minutes = (time.time() - started) / (len(jobs) - left) * left / 60
                    rest = f"; {left} left, about {minutes:.0f} min" if left else ""
                    bar.write(f"{job.name}, seed {job.seed}: {error or 'done'}{rest}")
                now = [job for job, process in list(running.items()) if process.poll() is None]
                bar.set_postfix_str(", ".join(f"{job.name} seed {job.seed} step {job.step()}" for job in now))
    except (KeyboardInterrupt, SystemExit):
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(running.values()):
            process.terminate()
        raise
    pool.shutdown()
    return failures


def _report(args: argparse.Namespace, jobs: Sequence[Job], failures: dict[tuple[str, int], str]) -> None:
    """Write the page, the table of all figures and the curves, and print the page."""
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
        {name: _what_it_is(path) for name, path in args.recipes.items()},
        baseline=args.baseline,
        failures=failures,
        facts=facts,
        curves="curves.png" if has_curves else None,
    )
    write_text(args.output_dir / "ablations.md", text)
    write_text(args.output_dir / "results.csv", results_csv(runs))
    print(f"\n{text}\nIn {args.output_dir}: ablations.md, results.csv, curves.png and a folder per recipe.")


def _what_it_is(path: Path) -> str:
    """The first sentence of a recipe's header."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip("# ") == "" or not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines).split(". ")[0].rstrip(".")
