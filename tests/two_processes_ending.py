"""Two gloo processes that leave by `end_processes` with things still to do; run by test_processes."""

import atexit
import sys
import threading
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from q_hawkeye_trl.process_exit import end_processes


def main(folder: str, status: str) -> None:
    accelerator = Accelerator(cpu=True)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))  # keeps gloo's threads
    model(torch.ones(1, 2)).sum().backward()
    mark = Path(folder, f"rank-{accelerator.process_index}")
    threading.Thread(target=lambda: (time.sleep(0.5), mark.with_suffix(".thread").touch())).start()
    atexit.register(mark.with_suffix(".atexit").touch)
    print("printed before the end", end="")
    end_processes(accelerator, int(status))
    mark.with_suffix(".shutdown").touch()


if __name__ == "__main__":
    main(*sys.argv[1:])
