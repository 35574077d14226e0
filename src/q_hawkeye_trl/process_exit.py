"""The end of a training script's processes."""

import atexit
import os
import sys
import threading

from accelerate import Accelerator


def end_processes(accelerator: Accelerator, status: int = 0) -> None:
    """
    End trackers and the process group, and exit if this is one of several processes on a CPU.

    It is the last call of a script: with several processes on a CPU nothing after it runs. DistributedDataParallel
    keeps gloo's threads alive after the process group is destroyed. One of them that frees a tensor during the
    interpreter's shutdown aborts the process ("terminate called without an active exception"; PyTorch issue 190489,
    pull request 179291), and a successful run is reported as failed. So the interpreter's last actions run here and
    its shutdown is skipped.

    Args:
        accelerator ([`~accelerate.Accelerator`]):
            The trainer's `accelerator`.
        status (`int`, *optional*, defaults to `0`):
            Exit status, 0 to 255, where the shutdown is skipped. Elsewhere the script exits by itself.
    """
    several_on_cpu = accelerator.num_processes > 1 and accelerator.device.type == "cpu"
    accelerator.end_training()
    if not several_on_cpu:
        return
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
