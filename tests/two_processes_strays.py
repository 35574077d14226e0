"""Runs that tempt the ranks of a backend apart, as one of several processes; each saves what it saw. Run by
test_distributed_forwards."""

import sys
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState

from distributed_cases import BACKENDS, leave
from distributed_strays import STRAYS, go_astray


def main(folder: str, backend: str, *names: str) -> None:
    # ranks that wait for one another for ever are the fault that is looked for
    state = PartialState(cpu=True, timeout=timedelta(seconds=60))
    seen = {}
    for name in names or STRAYS:
        seen[name] = go_astray(Path(folder), name, zero=BACKENDS[backend])
        torch.save(seen, Path(folder) / f"{backend}-strays-{state.process_index}.pt")
    state.wait_for_everyone()
    leave(state)


if __name__ == "__main__":
    main(*sys.argv[1:])
