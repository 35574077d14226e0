"""A short training in which the second of two gloo ranks meets a fault; each says how it ended. Run by test_guards."""

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch

from harness import build_trainer
from q_hawkeye_trl.checkpointing.stop_on_signal import StopOnSignalCallback
from q_hawkeye_trl.errors import TrainingInterrupted
from test_guards import failing_reward, spoil_gradient, spoil_loss


def main(folder: str, kind: str) -> None:
    rank = int(os.environ["RANK"])
    trainer = build_trainer(
        Path(folder) / "run",
        per_device_train_batch_size=4,
        max_steps=3,
        save_strategy="steps",
        save_steps=1,
        callbacks=[StopOnSignalCallback()],
        reward_funcs=[failing_reward(kind if rank == 1 else "", 2)],
    )
    # what ddp_timeout does on a GPU; transformers does not pass it on for the CPU
    torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=20), torch.distributed.group.WORLD)
    if rank == 1 and kind in ("loss", "gradient"):
        {"loss": spoil_loss, "gradient": spoil_gradient}[kind](trainer, 2)
    started = time.monotonic()
    try:
        trainer.train()
        ending = "it ended"
    except (Exception, TrainingInterrupted) as error:
        ending = f"{type(error).__name__}: {error}"
    seen = {
        "world_size": trainer.accelerator.num_processes,
        "ending": ending,
        "seconds": time.monotonic() - started,
        "step": trainer.state.global_step,
        "weights": sum(parameter.double().sum().item() for parameter in trainer.model.parameters()),
    }
    (Path(folder) / f"rank-{rank}.json").write_text(json.dumps(seen))
    if not ending.startswith("Training"):
        sys.exit(ending)
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
