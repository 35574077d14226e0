"""One validation as one of several gloo processes; each writes what it got. Run by test_validation."""

import json
import sys
from pathlib import Path

from q_hawkeye_trl.evaluation.validation import Validation
from q_hawkeye_trl.processes import end_processes
from test_validation import demo_trainer, rated_images


def main(folder: str) -> None:
    trainer = demo_trainer(
        Path(folder) / "run", eval_dataset=rated_images("validation", 10), validation=Validation(passes=2)
    )
    accelerator = trainer.accelerator
    seen = {"world_size": accelerator.num_processes, **trainer.evaluate()}
    (Path(folder) / f"rank-{accelerator.process_index}.json").write_text(json.dumps(seen))
    end_processes(accelerator)


if __name__ == "__main__":
    main(*sys.argv[1:])
