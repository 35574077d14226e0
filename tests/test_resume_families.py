"""Every family, full or with an adapter, with shared prompts or without, is resumed exactly."""

import itertools

import pytest
import torch
from peft import LoraConfig

from harness import build_trainer, largest_difference, run
from test_resume import OPTIONS, length_of_text, parameters_of, without_times
from tiny_models import FAMILIES, tiny_policy

FAST = [("smolvlm", 2, "on", True)]
CASES = [
    pytest.param(*case, marks=() if case in FAST else pytest.mark.slow)
    for case in itertools.product(FAMILIES, (1, 2), ("off", "on"), (False, True))
    if (case[0], case[2]) != ("gemma3", "on")  # whose prompts are not shared
]


def adapter() -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)


@pytest.mark.parametrize(("family", "num_iterations", "shared_prefix", "with_adapter"), CASES)
def test_resumed_run_equals_the_uninterrupted_one(tmp_path, family, num_iterations, shared_prefix, with_adapter):
    def parts(seed: int) -> dict:
        model, processor = tiny_policy(family, seed=seed)
        peft = {"peft_config": adapter()} if with_adapter else {}
        return {"model": model, "processing_class": processor, "reward_funcs": [length_of_text], **peft}

    options = OPTIONS | {"num_iterations": num_iterations, "shared_prefix": shared_prefix}
    whole = run(tmp_path / "whole", **parts(0), **options)
    # the frozen weights under an adapter are in no checkpoint; all that is must come from there
    resumed = build_trainer(tmp_path / "resumed", **parts(0 if with_adapter else 1), **options)
    with torch.no_grad():
        for parameter in resumed.model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    assert (tmp_path / "whole" / "checkpoint-1" / "rollouts_0.pt").exists() == (num_iterations == 2)
    assert largest_difference(parameters_of(resumed.model), whole.parameters) == 0
    assert (
        largest_difference(
            parameters_of(build_trainer(tmp_path / "start", **parts(0), **options).model), whole.parameters
        )
        > 1e-4
    )
    assert any("perception/kl" in line for line in whole.logs)
    assert without_times(resumed.state.log_history) == without_times(whole.trainer.state.log_history)
