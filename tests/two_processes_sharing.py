"""Two training steps with shared prompts as one of several processes, under DeepSpeed or FSDP2; run by
test_shared_prefix_distributed."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from harness import ON, build_trainer, run
from q_hawkeye_trl.process_exit import end_processes


def train(folder: Path, options: dict) -> tuple[dict, Accelerator]:
    """Two steps; what each rank logs of them."""
    done = run(folder, **options)
    trainer = done.trainer
    seen = {
        "world_size": trainer.accelerator.num_processes,
        "wrapper": type(trainer.model_wrapped).__name__,
        "logs": [{key: line[key] for key in ("loss", "grad_norm", "perception/kl")} for line in done.logs],
    }
    return seen, trainer.accelerator


def shard(folder: Path, options: dict) -> tuple[dict, Accelerator]:
    """The loss of one batch and its gradients, with the model sharded by FSDP2 and whole."""
    torch.distributed.init_process_group("gloo")
    results = {}
    for name in ("whole", "sharded"):
        trainer = build_trainer(folder / name, **options, **ON)
        model = trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        if name == "sharded":
            mesh = init_device_mesh("cpu", (2,))
            for layer in (*model.model.language_model.layers, *model.model.visual.blocks):
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
            assert isinstance(model, FSDPModule)
        loss = trainer.compute_loss(model, inputs)
        loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        full = {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in gradients.items()}
        if name == "whole":  # each rank has its own rows
            for gradient in full.values():
                torch.distributed.all_reduce(gradient)
                gradient /= 2
        results[name] = {"loss": loss.item(), "gradients": full}
    torch.distributed.barrier()
    return results, trainer.accelerator


def main(result: str, kind: str, options: str) -> None:
    seen, accelerator = {"train": train, "shard": shard}[kind](Path(result).parent, json.loads(options))
    if accelerator.is_main_process:
        torch.save(seen, result)
    end_processes(accelerator)


if __name__ == "__main__":
    main(*sys.argv[1:])
