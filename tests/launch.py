"""Starts worker.py as several processes of this machine, and leaves none of them behind."""

import os
import subprocess
import sys
from pathlib import Path

import psutil

TESTS = Path(__file__).parent
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
"""One thread a process, and DeepSpeed on the CPU even where there is a GPU."""


def start(command: list[str], *, environment: dict[str, str] | None = None, cwd: Path | None = None):
    """Starts a launcher whose programs can import what this process can; its output goes to pipes."""
    paths = os.pathsep.join([str(TESTS), *filter(None, sys.path)])
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": paths, **ENVIRONMENT, **(environment or {})},
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen, *, timeout: float, fails: bool = False) -> tuple[str, str]:
    """Wait for a launcher, which must end with status 0 unless `fails`; kill it with all its children if it hangs."""
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill(process)
        output, errors = process.communicate()
        raise AssertionError(f"still running after {timeout:g} seconds, killed:\n{errors[-3000:]}") from None
    finally:
        kill(process)  # ranks have sessions of their own
    assert (process.returncode == 0) != fails, f"status {process.returncode}:\n{errors[-6000:]}"
    return output, errors


def kill(process: subprocess.Popen) -> None:
    """Kills a launcher and what it started, which may have sessions of their own."""
    try:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue


def in_processes(
    case: str, *arguments: object, processes: int = 2, timeout: float = 300, fails: bool = False, **environment: str
) -> tuple[str, str]:
    """Run a case of worker.py in gloo processes that meet on the loopback; return output and errors."""
    command = [*TORCHRUN, "--nproc_per_node", str(processes), "--master_port", "0"]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0", str(TESTS / "worker.py"), case]
    return finish(start([*command, *map(str, arguments)], environment=environment), timeout=timeout, fails=fails)
