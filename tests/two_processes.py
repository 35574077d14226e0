"""One training step as one of several gloo processes; rank 0 saves what it saw. Run by test_equivalence."""

import json
import sys
from pathlib import Path

import torch

from harness import run
from q_hawkeye_trl.process_exit import end_processes


def main(result: str, options: str) -> None:
    done = run(Path(result).parent, **json.loads(options))
    if done.trainer.accelerator.is_main_process:
        seen = {
            "world_size": done.trainer.accelerator.num_processes,
            "wrapper": type(done.trainer.model_wrapped).__name__,
            "loss": done.logs[0]["loss"],
            "weight_mean": done.logs[0]["uncertainty/weight_mean"],
            "gradients": done.gradients[0],
        }
        torch.save(seen, result)
    end_processes(done.trainer.accelerator)


if __name__ == "__main__":
    main(*sys.argv[1:])
