"""One validation as one of several gloo processes; each writes what it got. Run by test_validation."""

import json
import sys
from pathlib import Path

from q_hawkeye_trl.evaluation.validation import Validation
from q_hawkeye_trl.process_exit import end_processes
from test_validation import demo_trainer, rated_images

ZERO3 = {
    "zero_optimization": {"stage": 3},
    "train_micro_batch_size_per_gpu": "auto",
    "train_batch_size": "auto",
    "gradient_accumulation_steps": "auto",
}


def main(folder: str, images: str, batch_size: str, how: str) -> None:
    rows = rated_images("validation", int(images))
    validation = Validation(passes=2, batch_size=int(batch_size))
    if how == "zero3":  # its engine is made by a training
        steps = {"max_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "learning_rate": 0.0}
        trainer = demo_trainer(
            Path(folder) / "run", eval_dataset=rows, validation=validation, deepspeed=ZERO3, **steps
        )
        trainer.train()
        figures = next(line for line in trainer.state.log_history if "eval_srcc_greedy" in line)
    else:
        trainer = demo_trainer(Path(folder) / "run", eval_dataset=rows, validation=validation)
        figures = trainer.evaluate()
    accelerator = trainer.accelerator
    seen = {"world_size": accelerator.num_processes, "kind": accelerator.distributed_type.value, **figures}
    (Path(folder) / f"rank-{accelerator.process_index}.json").write_text(json.dumps(seen))
    end_processes(accelerator)


if __name__ == "__main__":
    main(*sys.argv[1:])
