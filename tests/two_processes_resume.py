"""A run of two gloo ranks, from its start or from a checkpoint; rank 0 writes its log. Run by test_resume_ranks."""

import json
import sys
from pathlib import Path

from harness import build_trainer
from test_resume import OPTIONS, length_of_text
from tiny_models import tiny_policy
from two_processes_fsdp import let_accelerate_shard_on_the_cpu


def main(folder: str, checkpoint: str, options: str) -> None:
    given = json.loads(options)
    if given.get("fsdp"):
        let_accelerate_shard_on_the_cpu()
    # a policy of other weights where the checkpoint's are to be loaded
    model, processor = tiny_policy("qwen2_5_vl", seed=1 if checkpoint else 0)
    given |= {"model": model, "processing_class": processor, "reward_funcs": [length_of_text]}
    trainer = build_trainer(folder, **(OPTIONS | {"num_iterations": 2} | given))
    trainer.train(resume_from_checkpoint=checkpoint or None)
    seen = {
        "world_size": trainer.accelerator.num_processes,
        "wrapper": type(trainer.model_wrapped).__name__,
        "log": trainer.state.log_history,
    }
    if trainer.accelerator.is_main_process:
        (Path(folder) / "seen.json").write_text(json.dumps(seen))
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
