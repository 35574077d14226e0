"""One step's loss recomputed from the model's logits by plain loops in float64, without any code of ours or TRL's."""

import math

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from harness import ANSWERS, build_trainer
from tiny_models import save_policy, tiny_dataset, tiny_policy

G, ALPHA, BETA, GAMMA, ETA1, ETA2, TAU, T_MAX = 4, 0.9, 0.04, 0.07, 0.02, 0.03, 0.3, 24
SCORES = [1.5, 4.25, 3.0, None, 3.8, 2.2, 4.9, 5.0]  # of ANSWERS; 7 is clamped to 5
FORMAT = [0.8, 0.8, 0.0, 0.0, 0.8, 0.8, 0.8, 0.8]
CONFIG = {
    "uncertainty_alpha": ALPHA,
    "beta": BETA,
    "perception_gamma": GAMMA,
    "perception_gamma_schedule": "constant",
    "entropy_original_coef": ETA1,
    "entropy_degraded_coef": ETA2,
}


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo", "bnpo"])
def test_whole_loss_equals_loops_over_logits(tmp_path, loss_type):
    policy_path = save_policy("qwen2_5_vl", tmp_path / "policy")
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(policy_path),
        AutoProcessor.from_pretrained(policy_path),
    )
    dataset = tiny_dataset(2, degraded=True)
    trainer = build_trainer(
        tmp_path, model=model, processing_class=processor, train_dataset=dataset, loss_type=loss_type, **CONFIG
    )
    with torch.no_grad():  # a reference that differs, or its KL would be 0 at the first step
        for parameter in trainer.ref_model.parameters():
            parameter.add_(0.02 * torch.sin(torch.arange(parameter.numel()).view_as(parameter)))
    reference = {name: p.clone() for name, p in trainer.ref_model.state_dict().items()}
    order = rows_of_the_batch(trainer, dataset)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(
        oracle(dataset, order, reference, loss_type), rel=2e-5, abs=1e-7
    )


def rows_of_the_batch(trainer, dataset) -> list[dict]:
    """The two images of the step in the order in which the sampler dealt them out."""
    indices = list(trainer._get_train_sampler())[: 2 * G]
    assert len(set(indices)) == 2
    return [dataset[index] for index in indices[::G]]


def oracle(dataset, images, reference, loss_type) -> float:
    model, processor = tiny_policy("qwen2_5_vl")
    model = model.double().eval()
    reference_model = tiny_policy("qwen2_5_vl")[0]
    reference_model.load_state_dict(reference)
    reference_model = reference_model.double().eval()

    token_losses, lengths = [], []
    for i, image in enumerate(images):
        rows = range(i * G, i * G + G)
        for row, advantage in zip(rows, weighted_advantages(rows, image["mos"]), strict=True):
            tokens = processor.tokenizer.encode(ANSWERS[row], add_special_tokens=False)
            tokens = [*tokens, processor.tokenizer.eos_token_id]
            original = log_distributions(model, processor, image, image["image"], tokens)
            degraded = log_distributions(model, processor, image, image["degraded_image"], tokens)
            fixed = log_distributions(reference_model, processor, image, image["image"], tokens)
            losses = []
            for t, token in enumerate(tokens):
                lp, lp_degraded, lp_fixed = (float(table[t][token]) for table in (original, degraded, fixed))
                kl_reference = math.exp(lp_fixed - lp) - (lp_fixed - lp) - 1
                difference = max(-20.0, min(20.0, lp_degraded - lp))
                kl_perception = min(math.exp(difference) - difference - 1, 10.0)
                losses.append(
                    -advantage  # the ratio to the old policy is 1
                    + BETA * kl_reference
                    - GAMMA * kl_perception
                    + ETA1 * entropy(original[t])
                    + ETA2 * entropy(degraded[t])
                )
            token_losses.append(losses)
            lengths.append(len(tokens))
    if loss_type == "grpo":
        return sum(sum(row) / len(row) for row in token_losses) / len(token_losses)
    total = sum(sum(row) for row in token_losses)
    return total / (len(token_losses) * T_MAX if loss_type == "dr_grpo" else sum(lengths))


def weighted_advantages(rows, mos) -> list[float]:
    rewards = []
    for row in rows:
        accuracy = 0.0 if SCORES[row] is None else math.exp(-abs(SCORES[row] - mos) / TAU)
        rewards.append(accuracy + FORMAT[row])
    mean = sum(rewards) / G
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (G - 1))
    parsed = [SCORES[row] for row in rows if SCORES[row] is not None]
    centre = sum(parsed) / len(parsed)
    variance = sum((s - centre) ** 2 for s in parsed) / len(parsed)
    share = len(parsed) / G
    uncertainty = share * min(variance / 4.0, 1.0) + (1 - share)
    return [math.exp(-ALPHA * uncertainty) * (r - mean) / (std + 1e-4) for r in rewards]


def log_distributions(model, processor, row, image, tokens) -> list[torch.Tensor]:
    """Log-probabilities over the vocabulary at each completion token, from a plain forward of one row."""
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["prompt"][0]["content"]}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    inputs = processor(images=[image], text=[text], return_tensors="pt")
    prompt = inputs["input_ids"]
    inputs["input_ids"] = torch.cat([prompt, torch.tensor([tokens])], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["mm_token_type_ids"] = torch.cat(
        [inputs["mm_token_type_ids"], torch.zeros(1, len(tokens), dtype=torch.long)], dim=1
    )
    inputs["pixel_values"] = inputs["pixel_values"].double()
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    return [torch.log_softmax(logits[prompt.size(1) - 1 + t], dim=-1) for t in range(len(tokens))]


def entropy(log_probabilities: torch.Tensor) -> float:
    return -sum(math.exp(value) * value for value in log_probabilities.tolist())
