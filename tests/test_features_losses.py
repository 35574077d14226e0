"""A drift guard: our token weights equal the normalizer of TRL's own loss, for every known loss type."""

import pytest
import torch
from trl import GRPOTrainer

from harness import ON, build_trainer, run
from q_hawkeye_trl import HawkeyeGRPOTrainer
from q_hawkeye_trl.objective.reduction import LOSS_TYPES
from tiny_models import tiny_dataset

CUTS = {
    "whole": {},
    "accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    "generation twice the accumulation": {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
    },
    "generation half the accumulation": {"gradient_accumulation_steps": 2, "steps_per_generation": 1},
}
REST = {"perception_gamma_schedule": "constant", "learning_rate": 0.0}  # the ratio stays 1


@pytest.fixture
def losses(monkeypatch):
    """At each loss: TRL's own with advantages -1, and our weights applied to what a token then contributes."""
    seen = {"train": [], "eval": []}
    compute = HawkeyeGRPOTrainer._compute_loss

    def compare(self, model, inputs):
        probe = inputs | {"advantages": -torch.ones(len(inputs["prompt_ids"]))}
        with torch.no_grad(), self._capture_forward() as captured:
            theirs = GRPOTrainer._compute_loss(self, model, probe)
        ((logps, _),) = captured
        mask = inputs["completion_mask"]
        ours = (self._token_weights(mask, inputs) * contribution(self, logps.masked_fill(mask == 0, 0.0))).sum()
        seen["train" if self.model.training else "eval"].append((theirs.item(), ours.item()))
        return compute(self, model, inputs)

    monkeypatch.setattr(HawkeyeGRPOTrainer, "_compute_loss", compare)
    return seen


def contribution(trainer, logps: torch.Tensor) -> torch.Tensor:
    """The contribution of one token to the loss at advantage -1 and ratio 1, before TRL averages."""
    if trainer.loss_type == "cispo":  # the gradient of the log-probability, times the clipped ratio
        return min(1.0, trainer.epsilon_high) * logps
    if trainer.loss_type == "vespo":  # the same, with a weight of 1 at ratio 1
        return logps
    if trainer.loss_type == "sapo":  # 4 sigmoid(0) / temperature
        return torch.full_like(logps, 2 / trainer.args.sapo_temperature_neg)
    return torch.ones_like(logps)


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_trls_loss_is_our_token_weights_summed(tmp_path, losses, loss_type, cut):
    run(tmp_path, loss_type=loss_type, **REST, **ON, **cut)
    assert len(losses["train"]) == cut.get("gradient_accumulation_steps", 1)
    for theirs, ours in losses["train"]:
        assert theirs == pytest.approx(ours, rel=1e-5)
        assert abs(theirs) > 1e-3


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_same_holds_in_evaluation(tmp_path, losses, loss_type):
    trainer = build_trainer(
        tmp_path,
        loss_type=loss_type,
        eval_dataset=tiny_dataset(2, seed=1),
        per_device_eval_batch_size=4,
        gradient_accumulation_steps=3,
        **REST,
        **ON,
    )
    trainer.evaluate()
    assert len(losses["eval"]) == 2
    for theirs, ours in losses["eval"]:
        assert theirs == pytest.approx(ours, rel=1e-5)
        assert abs(theirs) > 1e-3
