"""Runs examples/train_koniq.py and writes down in which world it trained; started once on each of two "nodes" by
test_distributed_nodes."""

import json
import runpy
import sys
from pathlib import Path

from q_hawkeye_trl import HawkeyeGRPOTrainer

SCRIPT = Path(__file__).parents[1] / "examples" / "train_koniq.py"
train = HawkeyeGRPOTrainer.train


def observed(self, *args, **kwargs):
    result = train(self, *args, **kwargs)
    seen = {
        "world_size": self.accelerator.num_processes,
        "local_rank": self.accelerator.local_process_index,
        "wrapper": type(self.model_wrapped).__name__,
        "steps": self.state.global_step,
    }
    Path(folder, f"rank-{self.accelerator.process_index}.json").write_text(json.dumps(seen))
    return result


if __name__ == "__main__":
    folder = sys.argv[1]
    sys.argv = [str(SCRIPT), *sys.argv[2:]]
    HawkeyeGRPOTrainer.train = observed
    runpy.run_path(str(SCRIPT), run_name="__main__")
