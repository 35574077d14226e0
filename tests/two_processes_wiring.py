"""One observed step as one of several gloo processes; each rank saves what it saw. Run by test_wiring."""

import sys
from pathlib import Path

import torch

from q_hawkeye_trl.process_exit import end_processes
from test_wiring import observed_step


def main(folder: str) -> None:
    seen = observed_step(Path(folder) / "run", per_device_train_batch_size=4)
    accelerator = seen.pop("trainer").accelerator
    torch.save(seen, Path(folder) / f"rank-{accelerator.process_index}.pt")
    end_processes(accelerator)


if __name__ == "__main__":
    main(*sys.argv[1:])
