"""The machine beside its GPUs: cores, memory, shared memory, and what Hugging Face's libraries are set to."""

import os
import shutil
from pathlib import Path
from typing import Any

from ..run_facts.machine import usable_cores
from .disk import write_fault
from .finding import Finding, Plan, ok, problem, warning

GIB = 2**30
_SHARED = Path("/dev/shm")
_ENOUGH_SHARED = 1 * GIB  # containers begin with 64 MiB, on which NCCL and dataloader workers die


def check_cores(plan: Plan) -> list[Finding]:
    """Cores and threads."""
    cores, given = usable_cores(), os.environ.get("OMP_NUM_THREADS")
    if given is None:
        return [ok("cores", f"{cores}; OMP_NUM_THREADS is not set, torchrun sets it to 1 for several processes")]
    if not given.isdigit() or int(given) < 1:
        return [problem("cores", f"OMP_NUM_THREADS is {given!r}", "set it to a number of threads, or unset it")]
    if int(given) > cores:
        advice = f"set it to at most {cores} divided by the processes of this machine"
        return [warning("cores", f"OMP_NUM_THREADS is {given} on {cores} cores", advice)]
    return [ok("cores", f"{cores}, OMP_NUM_THREADS {given}")]


def check_shared_memory(plan: Plan) -> list[Finding]:
    """`/dev/shm`, through which NCCL, vLLM and dataloader workers talk."""
    if not _SHARED.is_dir():
        return [ok("/dev/shm", "this system has none")]
    space = shutil.disk_usage(_SHARED)
    text = f"{space.free / GIB:.2f} of {space.total / GIB:.2f} GiB free"
    if space.free < _ENOUGH_SHARED:
        advice = "start the container with --ipc=host or --shm-size=8g; or set dataloader_num_workers to 0"
        return [warning("/dev/shm", text, advice)]
    return [ok("/dev/shm", text)]


def check_hub(plan: Plan) -> list[Finding]:
    """Where Hugging Face's libraries keep what they fetch, and whether they may fetch."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if (fault := write_fault(existing)) is not None:
        advice = "set HF_HOME to a folder that you can write to"
        return [problem("Hugging Face", f"the cache {_from_home(cache)} can't be written to ({fault})", advice)]
    free = shutil.disk_usage(existing).free / GIB
    text = f"cache {_from_home(cache)}, {free:.0f} GiB free"
    if constants.HF_HUB_OFFLINE:
        return [ok("Hugging Face", f"{text}; offline (HF_HUB_OFFLINE), so models must be in it")]
    return [ok("Hugging Face", text)]


def _from_home(path: str | Path) -> str:
    """A path without the user's name: `~/.cache`."""
    path, home = Path(path), Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def check_accelerate(plan: Plan) -> list[Finding]:
    """The file that `accelerate launch` obeys without saying so."""
    import torch
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    gpus, area = torch.cuda.device_count(), "accelerate"
    if not os.path.isfile(default_config_file):
        if gpus:
            text = f"no default configuration: `accelerate launch` takes all {gpus} GPUs"
        else:
            text = "no default configuration: one process; for several on the CPU launch by torchrun --nproc_per_node"
        return [ok(area, text)]
    try:
        config = load_config_from_file(default_config_file)
    except Exception as error:  # yaml's errors, unknown keys, a foreign file
        text = f"{_from_home(default_config_file)} can't be read: {str(error).splitlines()[0]}"
        return [problem(area, text, "write it anew by `accelerate config`, or move it away")]
    return [_launch(config, gpus, default_config_file)]


def _launch(config: Any, gpus: int, file: str) -> Finding:
    kind = str(getattr(config.distributed_type, "value", config.distributed_type))
    processes, area = config.num_processes, "accelerate"
    said = f"{_from_home(file)}: {kind}, {processes} processes, mixed precision {config.mixed_precision}"
    advice = "give --config_file with a file of recipes/accelerate, or move this file away"
    if kind == "MULTI_CPU" or (config.use_cpu and processes > 1 and kind == "NO"):
        return warning(
            area, f"{said}; on the CPU it starts one process all the same", "launch by torchrun --nproc_per_node"
        )
    if gpus and config.use_cpu:
        return warning(area, f"{said}; the {gpus} GPUs are not used (use_cpu)", advice)
    if kind == "NO" and processes > 1:
        return warning(area, f"{said}; without distribution it starts one process", advice)
    if kind in ("MULTI_GPU", "DEEPSPEED", "FSDP") and not config.use_cpu and processes > gpus * config.num_machines:
        return problem(area, f"{said}; this machine has {gpus} GPUs", advice)
    if gpus > 1 and processes < gpus and config.num_machines == 1:
        return warning(area, f"{said}; {gpus - processes} of the {gpus} GPUs stay idle", advice)
    return ok(area, said)
