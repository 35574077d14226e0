"""The program that the processes of the distributed tests run: `worker.py CASE ARGUMENTS...`."""

import atexit
import json
import os
import runpy
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState

import distributed_cases as cases
from harness import ON, build_trainer, run
from q_hawkeye_trl import HawkeyeGRPOTrainer
from q_hawkeye_trl.process_exit import end_processes

SCRIPT = Path(__file__).parents[1] / "examples" / "train_koniq.py"


def step(result: str, options: str) -> None:
    """Train one step; rank 0 saves what it saw (test_equivalence)."""
    done = run(Path(result).parent, **json.loads(options))
    accelerator = done.trainer.accelerator
    if accelerator.is_main_process:
        seen = {
            "world_size": accelerator.num_processes,
            "wrapper": type(done.trainer.model_wrapped).__name__,
            "loss": done.logs[0]["loss"],
            "weight_mean": done.logs[0]["uncertainty/weight_mean"],
            "gradients": done.gradients[0],
        }
        torch.save(seen, result)
    end_processes(accelerator)


def features(folder: str, backend: str, *names: str) -> None:
    """Train with each feature under one backend (test_distributed)."""
    state, seen = PartialState(cpu=True), {}
    for name in names or cases.FEATURES:
        seen[name] = cases.train(
            Path(folder), cases.FEATURES[name], processes=state.num_processes, zero=cases.BACKENDS[backend]
        )
    torch.save(seen, Path(folder) / f"{backend}-{state.process_index}.pt")
    cases.leave(state)


def fsdp(folder: str, device: str, *names: str) -> None:
    """Train with each feature under FSDP2, or alone (test_distributed_fsdp)."""
    on_cpu = device == "cpu"
    if on_cpu:
        cases.make_accelerate_shard_on_the_cpu()
    state, seen = PartialState(cpu=on_cpu), {}
    for name in names or cases.FSDP2_FEATURES:
        sharding = cases.FSDP2 if state.num_processes > 1 else {}
        feature = {**cases.FEATURES[name], **sharding, "use_cpu": on_cpu}
        seen[name] = cases.train(Path(folder), feature, processes=state.num_processes)
    torch.save(seen, Path(folder) / f"fsdp-{state.process_index}-of-{state.num_processes}.pt")
    cases.leave(state)


def strays(folder: str, backend: str, *names: str) -> None:
    """Train on rows that tempt the ranks of a backend apart (test_distributed_forwards)."""
    from distributed_strays import STRAYS, go_astray

    # ranks that wait for one another are the fault under test
    state, seen = PartialState(cpu=True, timeout=timedelta(seconds=60)), {}
    for name in names or STRAYS:
        seen[name] = go_astray(Path(folder), name, zero=cases.BACKENDS[backend])
        torch.save(seen, Path(folder) / f"{backend}-strays-{state.process_index}.pt")
    cases.leave(state)


def saving(folder: str, backend: str) -> None:
    """Save, resume and reload under DeepSpeed; rank 0 saves the parameters (test_distributed_checkpoints)."""
    from tiny_models import save_policy

    state, place, seen = PartialState(cpu=True), Path(folder), {}
    if state.is_main_process:
        cases.prepare(place)
        save_policy("qwen2_5_vl", place / "other", seed=1)
    state.wait_for_everyone()
    for name, feature in {"whole": {}, "LoRA": {"peft_config": cases.LORA}}.items():
        output = f"{backend}-{name}"
        seen[name] = cases.train_and_save(place, backend, feature, output)
        # an adapter has no base model, so that must be the same; a whole model is resumed over other weights
        seen[f"{name}, resumed"] = cases.train_and_save(
            place,
            backend,
            feature,
            f"{output}-resumed",
            policy="policy" if "peft_config" in feature else "other",
            checkpoint=str(place / output / f"checkpoint-{cases.SAVED_AT}"),
        )
    if state.is_main_process:
        torch.save(seen, place / f"{backend}.pt")
    cases.leave(state)


def resume(folder: str, checkpoint: str, options: str) -> None:
    """Train from the start or from a checkpoint; rank 0 writes its log (test_resume_ranks)."""
    from test_resume import OPTIONS, length_of_text
    from tiny_models import tiny_policy

    given = json.loads(options)
    if given.get("fsdp"):
        cases.make_accelerate_shard_on_the_cpu()
    # other weights than the checkpoint's
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
        Path(folder, "seen.json").write_text(json.dumps(seen))
    trainer.accelerator.end_training()


def sharing(result: str, options: str) -> None:
    """Train two steps with shared prompts; rank 0 saves its logs (test_shared_prefix_distributed)."""
    done = run(Path(result).parent, **json.loads(options))
    accelerator = done.trainer.accelerator
    seen = {
        "world_size": accelerator.num_processes,
        "wrapper": type(done.trainer.model_wrapped).__name__,
        "logs": [{key: line[key] for key in ("loss", "grad_norm", "perception/kl")} for line in done.logs],
    }
    if accelerator.is_main_process:
        torch.save(seen, result)
    end_processes(accelerator)


def sharding(result: str, options: str) -> None:
    """Save the gradients of one batch, with the model whole and sharded by FSDP2 (test_shared_prefix_distributed)."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    torch.distributed.init_process_group("gloo")
    results = {}
    for name in ("whole", "sharded"):
        trainer = build_trainer(Path(result).parent / name, **json.loads(options), **ON)
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
    if trainer.accelerator.is_main_process:
        torch.save(results, result)
    end_processes(trainer.accelerator)


def guards(folder: str, kind: str) -> None:
    """Train while the second rank meets a fault; each rank writes how it ended (test_guards)."""
    from q_hawkeye_trl.checkpointing.stop_on_signal import StopOnSignalCallback
    from q_hawkeye_trl.errors import TrainingInterrupted
    from test_guards import failing_reward, spoil_gradient, spoil_loss

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
    # the effect of ddp_timeout on a GPU; transformers does not pass it on for the CPU
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
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(seen))
    if not ending.startswith("Training"):
        sys.exit(ending)
    trainer.accelerator.end_training()


def validation(folder: str, images: str, batch_size: str, how: str) -> None:
    """Validate once; each rank writes its figures (test_validation)."""
    from q_hawkeye_trl.evaluation.validation import Validation
    from test_validation import demo_trainer, rated_images

    options = {
        "eval_dataset": rated_images("validation", int(images)),
        "validation": Validation(passes=2, batch_size=int(batch_size)),
    }
    if how == "zero3":  # its engine is made by a training
        zero = {"zero_optimization": {"stage": 3}, "train_batch_size": "auto", **cases.ZERO}
        steps = {"max_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "learning_rate": 0.0}
        trainer = demo_trainer(Path(folder) / "run", deepspeed=zero, **steps, **options)
        trainer.train()
        figures = next(line for line in trainer.state.log_history if "eval_srcc_greedy" in line)
    else:
        trainer = demo_trainer(Path(folder) / "run", **options)
        figures = trainer.evaluate()
    accelerator = trainer.accelerator
    seen = {"world_size": accelerator.num_processes, "kind": accelerator.distributed_type.value, **figures}
    Path(folder, f"rank-{accelerator.process_index}.json").write_text(json.dumps(seen))
    end_processes(accelerator)


def wiring(folder: str) -> None:
    """Observe one step; each rank saves what it saw (test_wiring)."""
    from test_wiring import observed_step

    seen = observed_step(Path(folder) / "run", per_device_train_batch_size=4)
    accelerator = seen.pop("trainer").accelerator
    torch.save(seen, Path(folder) / f"rank-{accelerator.process_index}.pt")
    end_processes(accelerator)


def ending(folder: str, status: str) -> None:
    """Leave by `end_processes` with things still to do (test_process_exit)."""
    accelerator = Accelerator(cpu=True)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))  # keeps gloo's threads
    model(torch.ones(1, 2)).sum().backward()
    mark = Path(folder, f"rank-{accelerator.process_index}")
    threading.Thread(target=lambda: (time.sleep(0.5), mark.with_suffix(".thread").touch())).start()
    atexit.register(mark.with_suffix(".atexit").touch)
    print("printed before the end", end="")
    end_processes(accelerator, int(status))
    mark.with_suffix(".shutdown").touch()


def script(folder: str, *arguments: str) -> None:
    """Run examples/train_koniq.py; each rank writes the world that it trained in (test_distributed_nodes)."""
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

    sys.argv = [str(SCRIPT), *arguments]
    HawkeyeGRPOTrainer.train = observed
    runpy.run_path(str(SCRIPT), run_name="__main__")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
