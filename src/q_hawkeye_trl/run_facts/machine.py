"""What a run depends on: versions of packages, the machine's devices, and the commit of the code."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "q-hawkeye-trl",
    "trl",
    "transformers",
    "torch",
    "torchvision",
    "accelerate",
    "peft",
    "datasets",
    "tokenizers",
    "safetensors",
    "huggingface-hub",
    "pillow",
    "numpy",
    "scipy",
    "deepspeed",
    "vllm",
    "bitsandbytes",
    "flash-attn",
    "liger-kernel",
)
"""Packages that a run's result or speed depends on."""


def package_versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str | None]:
    """Look up installed versions without importing the packages; `None` for a missing one."""
    return {name: _version(name) for name in packages}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_state(folder: str | Path = ".") -> dict[str, Any] | None:
    """
    Ask git for the commit of a folder's checkout, without writing anything.

    Returns `commit` (`None` before the first), `branch` (`None` if detached) and `dirty`, whether tracked files differ
    from the commit; or `None` without a checkout or git. No remote is named: its address can hold a password.
    """
    command = ["git", "-C", str(folder), "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if process.returncode != 0:
        return None
    lines = process.stdout.splitlines()
    header = dict(line[2:].split(" ", 1) for line in lines if line.startswith("# branch."))
    commit, branch = header.get("branch.oid"), header.get("branch.head")
    return {
        "commit": None if commit == "(initial)" else commit,
        "branch": None if branch == "(detached)" else branch,
        "dirty": any(not line.startswith("#") for line in lines),
    }


def platform_facts() -> dict[str, Any]:
    """Describe Python, system, processor and cores, without the names of machine and user."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "machine": platform.machine(),
        "cores": usable_cores(),
    }


def usable_cores() -> int:
    """Number of cores that this process may run on, which a scheduler can limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def driver_version() -> str | None:
    """Version of NVIDIA's kernel driver, `None` without one."""
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        return None


def device_facts(kind: str | None = None) -> dict[str, Any]:
    """
    Describe the devices that torch sees: `kind`, `threads`, and for CUDA `names`, `memory_gib` and `capabilities` (an
    entry per device), `cuda` or `rocm`, and `driver`.

    `kind` is the kind of device in use, by default CUDA if it is available.
    """
    import torch

    kind = kind or ("cuda" if torch.cuda.is_available() else "cpu")
    facts: dict[str, Any] = {"kind": kind, "threads": torch.get_num_threads()}
    if kind != "cuda":
        return facts
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return facts | {
        "names": [device.name for device in devices],
        "memory_gib": [round(device.total_memory / 2**30, 1) for device in devices],
        "capabilities": [f"{device.major}.{device.minor}" for device in devices],
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
        "driver": driver_version(),
    }
