"""GPUs, attention, accelerate's default file, cores, shared memory and the Hugging Face cache."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..io.outputs import check_writable
from ..run_facts.machine import driver_version, usable_cores
from . import Finding, Plan, ok, problem, warning

GIB = 2**30
_FREE = 0.9  # below this share of free memory another process uses the GPU
_AMPERE = (8, 0)  # compute capability for FlashAttention 2 and fast bfloat16
_SHARED = Path("/dev/shm")
_ENOUGH_SHARED = 1 * GIB  # NCCL and dataloader workers crash with the 64 MiB of a default container


def check_gpu(plan: Plan) -> Iterator[Finding]:
    """Check devices, driver, bfloat16 and free memory."""
    import torch

    if plan.args is not None and plan.args.use_cpu:
        yield ok("GPU", "the recipe runs on the CPU (use_cpu)")
        return
    if not torch.cuda.is_available():
        yield _why_no_gpu()
        return
    count = torch.cuda.device_count()
    for index in range(count):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_properties(index).name
        text = f"{index}: {name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
        if free < _FREE * total:
            advice = "run nvidia-smi to see who uses it; select other GPUs by CUDA_VISIBLE_DEVICES"
            yield warning("GPU", text, advice)
        else:
            yield ok("GPU", text)
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    yield ok("driver", f"{driver_version() or 'unknown version'}; torch was built with {build}")
    slow = [str(index) for index in range(count) if torch.cuda.get_device_capability(index) < _AMPERE]
    text = f"GPU {', '.join(slow)} only emulates it"
    if not slow:
        yield ok("bfloat16", "supported")
    elif plan.args is None or plan.args.bf16:
        advice = (
            "set bf16 to false and dtype to float32 (or float16 with fp16), or use a GPU of capability 8.0 or more"
        )
        yield problem("bfloat16", text, advice)
    else:
        yield ok("bfloat16", f"{text}; it is not used")


def _why_no_gpu() -> Finding:
    import torch

    driver = driver_version()
    if driver is None and not any(Path("/dev").glob("nvidia[0-9]*")):
        text = "none; the bundled toy policy trains on the CPU, a model with billions of parameters does not"
        return warning(
            "GPU", text, "use a machine with a GPU; for the toy policy set bf16 to false and use_cpu to true"
        )
    if torch.version.cuda is None:
        return problem("GPU", "there is one, but this torch is built for the CPU", "install torch's CUDA build")
    try:
        torch.cuda.init()
        reason = "torch.cuda.is_available() is False"
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
    text = f"there is one (driver {driver}), but torch, built with CUDA {torch.version.cuda}, can't use it: {reason}"
    advice = "update the driver, or install a torch built for an older CUDA; check CUDA_VISIBLE_DEVICES too"
    return problem("GPU", text, advice)


def check_attention(plan: Plan) -> Iterator[Finding]:
    """List the usable attention implementations, and check that the recipe's is among them."""
    import torch
    from transformers.utils import is_flash_attn_2_available, is_torch_flex_attn_available

    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    able = bool(devices) and all(torch.cuda.get_device_capability(index) >= _AMPERE for index in devices)
    usable = {
        "eager": True,
        "sdpa": True,
        "flex_attention": is_torch_flex_attn_available(),
        "flash_attention_2": able and is_flash_attn_2_available(),
    }
    wanted, text = plan.model_option("attn_implementation"), ", ".join(name for name in usable if usable[name])
    if wanted is None:
        yield ok("attention", f"{text}; without attn_implementation transformers uses sdpa")
    elif wanted not in usable:
        advice = "check the name; transformers fetches a kernel such as kernels-community/flash-attn2 from the Hub"
        yield warning("attention", f"{wanted} is not among {text}", advice)
    elif usable[wanted]:
        yield ok("attention", f"{text}; the recipe uses {wanted}")
    elif wanted == "flash_attention_2" and not able:  # installing the package would not help
        reason = "needs a GPU of compute capability 8.0 or more"
        yield problem("attention", f"the recipe asks for {wanted}, which {reason}", "set attn_implementation to sdpa")
    else:
        install = ", or pip install flash-attn --no-build-isolation" if wanted == "flash_attention_2" else ""
        text = f"the recipe asks for {wanted}, which is not installed, or not for this torch"
        yield problem("attention", text, f"set attn_implementation to sdpa{install}")


def check_accelerate(plan: Plan) -> Iterator[Finding]:
    """Check the default file that `accelerate launch` reads without a message."""
    import torch
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    gpus = torch.cuda.device_count()
    if not os.path.isfile(default_config_file):
        text = "one process; for several on the CPU launch with torchrun --nproc_per_node"
        text = f"`accelerate launch` uses all {gpus} GPUs" if gpus else text
        yield ok("accelerate", f"no default configuration: {text}")
        return
    file = _from_home(default_config_file)
    try:
        config = load_config_from_file(default_config_file)
    except Exception as error:  # a YAML error, unknown keys, another program's file
        text = f"{file} can't be read: {str(error).splitlines()[0]}"
        yield problem("accelerate", text, "rewrite it with `accelerate config`, or move it away")
        return
    yield _check_launch(config, gpus, file)


def _check_launch(config: Any, gpus: int, file: str) -> Finding:
    kind, processes = str(getattr(config.distributed_type, "value", config.distributed_type)), config.num_processes
    text = f"{file}: {kind}, {processes} processes, mixed precision {config.mixed_precision}"
    advice = "pass --config_file with a file of recipes/accelerate, or move this file away"
    if kind == "MULTI_CPU" or (config.use_cpu and processes > 1 and kind == "NO"):
        advice = "launch with torchrun --nproc_per_node"
        return warning("accelerate", f"{text}; on the CPU it starts only one process", advice)
    if gpus and config.use_cpu:
        return warning("accelerate", f"{text}; the {gpus} GPUs are not used (use_cpu)", advice)
    if kind == "NO" and processes > 1:
        return warning("accelerate", f"{text}; without distribution it starts one process", advice)
    if kind in ("MULTI_GPU", "DEEPSPEED", "FSDP") and not config.use_cpu and processes > gpus * config.num_machines:
        return problem("accelerate", f"{text}; this machine has {gpus} GPUs", advice)
    if gpus > 1 and processes < gpus and config.num_machines == 1:
        return warning("accelerate", f"{text}; {gpus - processes} of the {gpus} GPUs stay idle", advice)
    return ok("accelerate", text)


def check_cores(plan: Plan) -> Iterator[Finding]:
    """Compare OMP_NUM_THREADS with the cores."""
    cores, given = usable_cores(), os.environ.get("OMP_NUM_THREADS")
    if given is None:
        yield ok("cores", f"{cores}; OMP_NUM_THREADS is not set, torchrun sets it to 1 for several processes")
    elif not given.isdigit() or int(given) < 1:
        yield problem("cores", f"OMP_NUM_THREADS is {given!r}", "set it to a number of threads, or unset it")
    elif int(given) > cores:
        advice = f"set it to at most {cores} divided by the processes of this machine"
        yield warning("cores", f"OMP_NUM_THREADS is {given} on {cores} cores", advice)
    else:
        yield ok("cores", f"{cores}, OMP_NUM_THREADS {given}")


def check_shared_memory(plan: Plan) -> Iterator[Finding]:
    """Check `/dev/shm`, which NCCL, vLLM and dataloader workers use."""
    if not _SHARED.is_dir():
        yield ok("/dev/shm", "this system has none")
        return
    space = shutil.disk_usage(_SHARED)
    text = f"{space.free / GIB:.2f} of {space.total / GIB:.2f} GiB free"
    if space.free < _ENOUGH_SHARED:
        advice = "start the container with --ipc=host or --shm-size=8g; or set dataloader_num_workers to 0"
        yield warning("/dev/shm", text, advice)
    else:
        yield ok("/dev/shm", text)


def check_hub(plan: Plan) -> Iterator[Finding]:
    """Check that the Hugging Face cache is writable, and report offline mode."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    text = f"cache {_from_home(cache)}"
    try:
        check_writable(existing)
    except OSError as error:
        text += f" can't be written to ({error.strerror or error})"
        yield problem("Hugging Face", text, "set HF_HOME to a folder that you can write to")
        return
    text += f", {shutil.disk_usage(existing).free / GIB:.0f} GiB free"
    offline = "; offline (HF_HUB_OFFLINE), so models must be in it" if constants.HF_HUB_OFFLINE else ""
    yield ok("Hugging Face", text + offline)


def _from_home(path: str | Path) -> str:
    """The path without the user's name: `~/.cache`."""
    path, home = Path(path), Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
