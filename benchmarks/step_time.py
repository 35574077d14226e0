"""
Seconds of a training step by phase, for TRL's GRPOTrainer and ours, in one run and alternating.

    python benchmarks/step_time.py                                      the whole grid, some 20 minutes on two cores
    python benchmarks/step_time.py --prompt 1024 --completion 64 --group 8 --json point.json
    python benchmarks/step_time.py --model Qwen/Qwen2.5-VL-3B-Instruct  on any device

Phases: decode (reading the images of the batch), preprocess (the processor's calls), generate, score (reference
log-probabilities), update (score + loss, forward and backward), degrade (the degraded views, without the processor's
part), other (the rest of the step). Every step has an image of its own. `trl_grpo` is TRL, `ours_grpo` the same loss
with shared prompts, `ours_hawkeye` the whole method with a gradient through both branches.
"""

import argparse
import gc
import json
import resource
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
from step_setup import VARIANTS, build, load_config, photographs, processor_for, rows_of, save_start

GRID = [(p, c, g) for p in (256, 1024) for c in (64, 256) for g in (4, 8, 16)]
PHASES = ("decode", "preprocess", "generate", "score", "update", "degrade", "other")


class Clock:
    """Adds up the seconds of named phases; what runs in an inner phase does not count for the outer one."""

    def __init__(self, device: str):
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._turn()
        self._running.append(name)
        try:
            yield
        finally:
            self._turn()
            self._running.pop()

    def _turn(self) -> None:
        """Books the time since the last change of phase to the innermost one."""
        if self.device != "cpu":
            torch.accelerator.synchronize()
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def timed(self, name: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            with self.phase(name):
                return function(*args, **kwargs)

        return call


class Step:
    """One variant's trainer with its phases timed, and the tokens that its decoder runs counted."""

    def __init__(self, variant: str, path: str, paths: list[str], point: tuple, beta: float, device: str):
        self.clock, self.tokens = Clock(device), 0
        processor = processor_for(path, point[0])
        data = rows_of(point[0], processor, paths)
        kind = type(processor)
        # the processor of this trainer is of a class of its own, whose calls are timed
        timed = {"__call__": lambda p, *a, **k: self._call(kind, p, *a, **k)}
        processor.__class__ = type(kind.__name__, (kind,), timed)
        output_dir = str(Path(paths[0]).parent / variant)
        self.trainer = build(variant, path, data, processor, *point[1:], beta, device, output_dir)
        trainer = self.trainer
        trainer._tokenize_prompts = self.clock.timed("preprocess", trainer._tokenize_prompts)
        trainer._generate_single_turn = self.clock.timed("generate", trainer._generate_single_turn)
        if variant == "ours_hawkeye":
            trainer._degraded_pixels = self.clock.timed("degrade", trainer._degraded_pixels)
        self._forward = trainer._get_per_token_logps_and_entropies
        trainer._get_per_token_logps_and_entropies = self._logps
        trainer.model.get_decoder().register_forward_pre_hook(self._count, with_kwargs=True)
        self.batches = iter(trainer.get_train_dataloader())

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
        """One step, on the next image; returns the seconds of its phases, the reference forward within `update`."""
        self.clock.seconds.clear()
        self.tokens = 0
        repeat = processing._repeat
        processing._repeat = self.clock.timed("preprocess", repeat)
        try:
            with self.clock.phase("other"):
                with self.clock.phase("decode"):
                    batch = next(self.batches)
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
        # one image a step, and one more, since the loader reads ahead
        paths = photographs(Path(folder), repeats + 2)
        steps = {variant: Step(variant, path, paths, point, beta, device) for variant in VARIANTS}
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
        read = {v: phases[v]["preprocess"] + phases[v]["decode"] for v in VARIANTS}
        return {
            "prompt": prompt,
            "completion": completion,
            "group": group,
            "beta": beta,
            "device": device_name(device),
            "phases": phases,
            "update_seconds": {v: phases[v]["update"] for v in VARIANTS},
            "update_seconds_without_reference": {v: phases[v]["update"] - phases[v]["score"] for v in VARIANTS},
            "preprocess_seconds": {"trl": read["trl_grpo"], "ours": read["ours_grpo"]},
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
        step = Step(variant, path, photographs(Path(folder), 2), point, beta, device)
        gc.collect()
        if device != "cpu":
            torch.accelerator.reset_peak_memory_stats()
            before = torch.accelerator.memory_allocated()
            step.run()
            print(torch.accelerator.max_memory_allocated() - before)
            return
        if sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = _peak_rss()
        step.run()
        print(_peak_rss() - before)


def _peak_rss() -> int:
    """Largest resident memory of this process so far, in bytes."""
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def device_name(device: str) -> str:
    """The device's name in the figures."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads" if device == "cpu" else device


def report(result: dict) -> str:
    """One point as text: a line a variant, then the ratios beside what they are held against."""
    point = f"P {result['prompt']}, C {result['completion']}, G {result['group']}, beta {result['beta']}"
    lines = [f"\n{point} ({result['device']}; vision tower {result['tower_share']:.0%} of the prompt's operations)"]
    lines.append(f"{'':14}" + "".join(f"{name:>11}" for name in (*PHASES, "tokens", "peak MiB")))
    for variant in VARIANTS:
        cells = [f"{result['phases'][variant][name]:>11.3f}" for name in PHASES]
        cells.append(f"{result['decoder_tokens'][variant]:>11,}")
        cells.append(f"{result['peak_bytes'][variant] / 2**20:>11.0f}" if "peak_bytes" in result else f"{'':>11}")
        lines.append(f"{variant:14}" + "".join(cells))
    update, read = result["update_seconds"], result["preprocess_seconds"]
    speedup, bound = update["trl_grpo"] / update["ours_grpo"], result["flop_bound"]
    lines.append(f"update, GRPO: {speedup:.2f} times faster; the bound is {bound:.2f}, reached {speedup / bound:.2f}")
    lines.append(f"update, whole method: {update['ours_hawkeye'] / update['trl_grpo']:.2f} of TRL's plain GRPO")
    loss = result["update_seconds_without_reference"]
    lines.append(
        f"update without the reference (beta 0): GRPO {loss['trl_grpo'] / loss['ours_grpo']:.2f} times faster, "
        f"whole method {loss['ours_hawkeye'] / loss['trl_grpo']:.2f} of TRL's plain GRPO"
    )
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
    here = torch.accelerator.current_accelerator(check_available=True)
    parser.add_argument(
        "--device", choices=["cpu", *([here.type] if here else [])], default=here.type if here else "cpu"
    )
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
