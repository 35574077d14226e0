"""
Seconds of a training step by phase, for TRL's GRPOTrainer and ours, in one run and alternating.

    python benchmarks/step_time.py                                      the whole grid, some 20 minutes on two cores
    python benchmarks/step_time.py --prompt 1024 --completion 64 --group 8 --json point.json
    python benchmarks/step_time.py --model Qwen/Qwen2.5-VL-3B-Instruct  on any device

Phases: decode (reading the images of the batch), preprocess (the processor's calls), generate, score (reference
log-probabilities), update (score + loss, forward and backward). `trl_grpo` is TRL, `ours_grpo` the same loss with
shared prompts, `ours_hawkeye` the whole method with a gradient through both branches.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from q_hawkeye_trl.shared_prefix import processing
from step_flops import cost_of, flop_bound, packed_flops, rows_flops
from step_setup import VARIANTS, build, load_config, processor_for, rows_of, save_start

GRID = [(p, c, g) for p in (256, 1024) for c in (64, 256) for g in (4, 8, 16)]
PHASES = ("decode", "preprocess", "generate", "score", "update")


class Clock:
    """Adds up the seconds of named phases; of nested calls of one phase the outermost counts."""

    def __init__(self, device: str):
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self._running: set[str] = set()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        if name in self._running:
            yield
            return
        self._running.add(name)
        start = self._now()
        try:
            yield
        finally:
            self.seconds[name] += self._now() - start
            self._running.discard(name)

    def timed(self, name: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            with self.phase(name):
                return function(*args, **kwargs)

        return call

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


class Step:
    """One variant's trainer with its phases timed, and the tokens that its decoder runs counted."""

    def __init__(self, variant: str, path: str, data, processor, point: tuple, beta: float, device: str):
        self.clock, self.tokens = Clock(device), 0
        kind = type(processor)
        # the processor of this trainer is of a class of its own, whose calls are timed
        timed = {"__call__": lambda p, *a, **k: self._call(kind, p, *a, **k)}
        processor.__class__ = type(kind.__name__, (kind,), timed)
        self.trainer = build(variant, path, data, processor, *point[1:], beta, device)
        trainer = self.trainer
        trainer._tokenize_prompts = self.clock.timed("preprocess", trainer._tokenize_prompts)
        trainer._generate_single_turn = self.clock.timed("generate", trainer._generate_single_turn)
        self._forward = trainer._get_per_token_logps_and_entropies
        trainer._get_per_token_logps_and_entropies = self._logps
        trainer.model.get_decoder().register_forward_pre_hook(self._count, with_kwargs=True)
        self.loader = trainer.get_train_dataloader()

    def _call(self, kind, processor, *args, **kwargs):
        with self.clock.phase("preprocess"):
            return kind.__call__(processor, *args, **kwargs)

    def _logps(self, *args, **kwargs):
        if torch.is_grad_enabled():
            return self._forward(*args, **kwargs)
        with self.clock.phase("score"):
            return self._forward(*args, **kwargs)

    def _count(self, module, args, inputs):
        self.tokens += inputs["inputs_embeds"][..., 0].numel()

    def run(self) -> dict[str, float]:
        """One step; returns the seconds of its phases, `update` with the reference forward in it."""
        self.clock.seconds.clear()
        self.tokens = 0
        repeat = processing._repeat
        processing._repeat = self.clock.timed("preprocess", repeat)
        try:
            with self.clock.phase("decode"):
                batch = next(iter(self.loader))
            inputs = self.trainer._prepare_inputs(batch)
            with self.clock.phase("update"):
                loss = self.trainer.compute_loss(self.trainer.model, inputs)
                loss.backward()
        finally:
            processing._repeat = repeat
        self.trainer.model.zero_grad()
        seconds = {name: self.clock.seconds[name] for name in PHASES}
        seconds["update"] += seconds["score"]
        return seconds


def measure(point: tuple[int, int, int], path: str, beta: float, repeats: int, device: str) -> dict:
    """Medians over alternating repeats of all variants at one point of the grid."""
    prompt, completion, group = point
    with tempfile.TemporaryDirectory() as folder:
        steps = {}
        for variant in VARIANTS:
            processor = processor_for(path, prompt)
            data = rows_of(prompt, processor, Path(folder))
            steps[variant] = Step(variant, path, data, processor, point, beta, device)
        rows: dict[str, list[dict]] = {variant: [] for variant in VARIANTS}
        for turn in range(repeats + 1):
            for variant, step in steps.items():
                gc.collect()
                seconds = step.run()
                if turn > 0:  # the first one warms up
                    rows[variant].append(seconds)
        patches = int(steps["trl_grpo"].trainer._buffered_inputs[0]["image_grid_thw"][0].prod())
        cost = cost_of(load_config(path), patches)
        phases = {v: {name: statistics.median(row[name] for row in rows[v]) for name in PHASES} for v in VARIANTS}
        return {
            "prompt": prompt,
            "completion": completion,
            "group": group,
            "beta": beta,
            "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
            "phases": phases,
            "update_seconds": {v: phases[v]["update"] for v in VARIANTS},
            "preprocess_seconds": {
                "trl": phases["trl_grpo"]["preprocess"] + phases["trl_grpo"]["decode"],
                "ours": phases["ours_grpo"]["preprocess"] + phases["ours_grpo"]["decode"],
            },
            "decoder_tokens": {v: steps[v].tokens for v in VARIANTS},
            "flops": {"rows": rows_flops(cost, *point), "packed": packed_flops(cost, *point)},
            "tower_share": cost.image / (cost.image + prompt * cost.token + prompt * (prompt + 1) // 2 * cost.pair),
            "flop_bound": flop_bound(cost, *point),
        }


def peak_bytes(variant: str, point: tuple, path: str, beta: float, device: str) -> int:
    """Largest memory of one step above what stood before it, in a process of its own."""
    command = [sys.executable, __file__, "--peak-of", variant, "--model", path, "--beta", str(beta)]
    command += ["--prompt", str(point[0]), "--completion", str(point[1]), "--group", str(point[2]), "--device", device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"The child process of {variant} failed:\n{done.stderr[-2000:]}")
    return int(done.stdout.split()[-1])


def print_peak(variant: str, point: tuple, path: str, beta: float, device: str) -> None:
    """What the child process does: one step, then the peak on the last line."""
    with tempfile.TemporaryDirectory() as folder:
        processor = processor_for(path, point[0])
        step = Step(variant, path, rows_of(point[0], processor, Path(folder)), processor, point, beta, device)
        gc.collect()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step.run()
            print(torch.cuda.max_memory_allocated() - before)
            return
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak counts from here
        before = _status("VmRSS")
        step.run()
        print(_status("VmHWM") - before)


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def report(result: dict) -> str:
    """One point as text: a line a variant, then the ratios beside what they are held against."""
    point = f"P {result['prompt']}, C {result['completion']}, G {result['group']}, beta {result['beta']}"
    lines = [f"\n{point} ({result['device']}; vision tower {result['tower_share']:.0%} of the prompt's operations)"]
    lines.append(f"{'':14}" + "".join(f"{name:>12}" for name in (*PHASES, "tokens", "peak MiB")))
    for variant in VARIANTS:
        cells = [f"{result['phases'][variant][name]:>12.3f}" for name in PHASES]
        cells.append(f"{result['decoder_tokens'][variant]:>12,}")
        cells.append(f"{result['peak_bytes'][variant] / 2**20:>12.0f}" if "peak_bytes" in result else f"{'':>12}")
        lines.append(f"{variant:14}" + "".join(cells))
    update, read = result["update_seconds"], result["preprocess_seconds"]
    speedup, bound = update["trl_grpo"] / update["ours_grpo"], result["flop_bound"]
    lines.append(f"update, GRPO: {speedup:.2f} times faster; the bound is {bound:.2f}, reached {speedup / bound:.2f}")
    lines.append(f"update, whole method: {update['ours_hawkeye'] / update['trl_grpo']:.2f} of TRL's plain GRPO")
    lines.append(f"decode and preprocess: {read['trl'] / read['ours']:.1f} times faster")
    whole = {v: sum(result["phases"][v][name] for name in PHASES if name != "score") for v in VARIANTS}
    lines.append(f"whole step: GRPO {whole['trl_grpo'] / whole['ours_grpo']:.2f} times faster, "
                 f"whole method {whole['ours_hawkeye'] / whole['trl_grpo']:.2f} of TRL's plain GRPO")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Folder or hub name of a Qwen2.5-VL. By default a small random one.")
    parser.add_argument("--prompt", type=int, help="Tokens of the prompt with its image, P.")
    parser.add_argument("--completion", type=int, help="Tokens of each completion, C.")
    parser.add_argument("--group", type=int, help="Rollouts of the prompt, G.")
    parser.add_argument("--beta", type=float, default=0.04, help="Coefficient of the KL to the reference.")
    parser.add_argument("--repeats", type=int, default=3, help="Measured steps a variant, after one that warms up.")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--skip-peak", action="store_true", help="Leave out the memory, a process a variant and point."
    )
    parser.add_argument("--json", type=Path, help="File for the figures; with one point an object, else a list.")
    parser.add_argument("--peak-of", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    chosen = (args.prompt, args.completion, args.group)
    grid = [p for p in GRID if all(want in (None, have) for want, have in zip(chosen, p, strict=True))]
    if None not in chosen:
        grid = [chosen]
    with tempfile.TemporaryDirectory() as folder:
        path = save_start(Path(folder), args.model)
        if args.peak_of:
            print_peak(args.peak_of, grid[0], path, args.beta, args.device)
            return
        results = []
        for point in grid:
            result = measure(point, path, args.beta, args.repeats, args.device)
            if not args.skip_peak:
                result["peak_bytes"] = {v: peak_bytes(v, point, path, args.beta, args.device) for v in VARIANTS}
            results.append(result)
            print(report(result), flush=True)
        if args.json:
            args.json.write_text(json.dumps(results[0] if len(results) == 1 else results, indent=2) + "\n")


if __name__ == "__main__":
    main()
