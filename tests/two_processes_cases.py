"""All trainings of a backend as one of several processes; each rank saves what it saw. Run by test_distributed."""

import sys
import time
from pathlib import Path

import torch
from accelerate import PartialState

import distributed_cases as cases


def main(folder: str, backend: str, *names: str) -> None:
    state = PartialState(cpu=True)
    seen = {}
    for name in names or cases.FEATURES:
        started = time.perf_counter()
        seen[name] = cases.train(
            Path(folder), cases.FEATURES[name], processes=state.num_processes, zero=cases.BACKENDS[backend]
        )
        seen[name]["seconds"] = time.perf_counter() - started
    torch.save(seen, Path(folder) / f"{backend}-{state.process_index}.pt")
    state.wait_for_everyone()
    cases.leave(state)


if __name__ == "__main__":
    main(*sys.argv[1:])
