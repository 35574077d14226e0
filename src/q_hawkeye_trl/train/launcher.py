"""Processes and threads of a training: accelerate's launcher where there are several, all cores on a CPU."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..run_facts.launches import FACTS_FILE, read_launches
from ..run_facts.machine import usable_cores
from .recipes import find_recipe

_LAUNCHED = ("WORLD_SIZE", "LOCAL_RANK", "ACCELERATE_MIXED_PRECISION")  # set by torchrun and accelerate


def launch_parser() -> argparse.ArgumentParser:
    """Parser of the options that start several processes."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    group = parser.add_argument_group("Launch")
    group.add_argument(
        "--accelerate_config",
        metavar="NAME|FILE",
        help="Use accelerate's launcher with this file of `accelerate config`, or packaged one, e.g. zero3.",
    )
    group.add_argument(
        "--num_processes",
        metavar="N",
        help="Start this many processes. Other options of `accelerate launch` are accepted too.",
    )
    return parser


def launch_command(argv: Sequence[str], parser: argparse.ArgumentParser) -> list[str] | None:
    """
    Build the command that runs `q-hawkeye train` in several processes.

    Args:
        argv (`Sequence[str]`):
            Words after `train`. Options unknown to `parser` are passed to the launcher.
        parser (`argparse.ArgumentParser`):
            Parser of the training's own options.

    Returns:
        `list[str]` or `None`: Words of the command. `None` if the training runs in this process: neither
        `--accelerate_config` nor `--num_processes` is given and there is at most one GPU, or a launcher has started
        this process.
    """
    own, rest = launch_parser().parse_known_args(argv)
    named = own.accelerate_config is not None or own.num_processes is not None
    if not named and (torch.cuda.device_count() <= 1 or any(name in os.environ for name in _LAUNCHED)):
        return None
    _, unknown = parser.parse_known_args(rest)
    training = ["--module", "q_hawkeye_trl", "train", *_without(rest, unknown)]
    if own.accelerate_config is None and not torch.accelerator.is_available():
        # `accelerate launch --cpu` starts one process, whatever its number
        torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node", own.num_processes]
        return [sys.executable, "-m", *torchrun, *unknown, *training, "--use_cpu", "true"]
    options = list(unknown)
    if own.num_processes is not None:
        options += ["--num_processes", own.num_processes]
    if own.accelerate_config is not None:
        options += ["--config_file", str(find_recipe(own.accelerate_config, "accelerate"))]
    return [sys.executable, "-m", "accelerate.commands.launch", *options, *training]


def _without(words: Sequence[str], removed: Sequence[str]) -> list[str]:
    """Words without an ordered subsequence of them."""
    left, kept = list(removed), []
    for word in words:
        if left and word == left[0]:
            del left[0]
        else:
            kept.append(word)
    return kept


def use_cores(device: torch.device, wanted: int | None, run_folder: str | Path) -> None:
    """
    Set the threads of a process that trains on a CPU.

    A resumed run keeps its recorded number, because sums depend on it in their last bits. `OMP_NUM_THREADS` above 1 is
    the user's; 1 is ignored, because launchers set it and it can't be told from the user's.

    Args:
        device (`torch.device`):
            Device of the training; nothing changes on another one than a CPU.
        wanted (`int`, *optional*):
            Number that the user asks for.
        run_folder (`str` or `Path`):
            Folder of the run, which may have a record of earlier launches.
    """
    if device.type != "cpu":
        return
    if wanted is None:
        record = Path(run_folder) / FACTS_FILE
        launches = read_launches(record) if record.is_file() else []
        wanted = launches[-1].get("device", {}).get("threads") if launches else None
    if wanted is None and int(os.environ.get("OMP_NUM_THREADS", "1").split(",")[0]) > 1:
        return
    torch.set_num_threads(wanted or max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
