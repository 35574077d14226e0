"""The end of a training script's processes."""

import atexit
import os
import sys
import threading

from accelerate import Accelerator


def end_processes(accelerator: Accelerator, status: int = 0) -> None:
    """
    Ends the trackers and the process group, and leaves this process if it is one of several on a CPU. It is the last
    call of a script: in that case nothing after it runs.

    DistributedDataParallel keeps gloo's threads alive after the process group is destroyed, and one of them that lets
    go of a tensor while the interpreter shuts down aborts the process ("terminate called without an active
    exception"; PyTorch issue 190489, pull request 179291): a run that did everything would be reported as failed. So
    what an interpreter does at its end is done here, and its shutdown left out.

    Args:
        accelerator ([`~accelerate.Accelerator`]):
            The trainer's `accelerator`.
        status (`int`, *optional*, defaults to `0`):
            Exit status of the process, 0 to 255, with which it is left where the shutdown is left out. A script that
            ends with another status exits by itself otherwise.
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
