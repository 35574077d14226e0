"""Trainings under FSDP2 as one of several processes, on GPUs or on the CPU, or the same trainings by themselves; each
rank saves what it saw. Run by test_distributed_fsdp."""

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

import distributed_cases as cases

FSDP2 = {
    "fsdp": True,
    "fsdp_config": {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": ["Qwen2_5_VLDecoderLayer", "Qwen2_5_VLVisionBlock"],
    },
}
FEATURES = (
    "a group across ranks",
    "uneven completion lengths",
    "gradient accumulation",
    "rows without a degraded view",
    "num_iterations 2",
    "shared prompts",
)


def let_accelerate_shard_on_the_cpu() -> None:
    """Accelerate takes FSDP for GPUs only and makes plain data parallelism of it on a CPU; here it is made to try."""
    initialise = AcceleratorState.__init__

    def initialised(self, *args, fsdp_plugin=None, **kwargs):
        initialise(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = initialised


def main(place: str, device: str, *names: str) -> None:
    on_cpu = device == "cpu"
    if on_cpu:
        let_accelerate_shard_on_the_cpu()
    state = PartialState(cpu=on_cpu)
    seen = {}
    for name in names or FEATURES:
        sharding = FSDP2 if state.num_processes > 1 else {}
        feature = {**cases.FEATURES[name], **sharding, "use_cpu": on_cpu}
        seen[name] = cases.train(Path(place), feature, processes=state.num_processes)
    torch.save(seen, Path(place) / f"fsdp-{state.process_index}-of-{state.num_processes}.pt")
    state.wait_for_everyone()
    cases.leave(state)


if __name__ == "__main__":
    main(*sys.argv[1:])
