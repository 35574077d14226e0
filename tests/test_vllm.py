"""
Generation by vLLM, in its process (colocate) and on a server: TRL's own `VLLMGeneration` runs, and only vLLM itself is
replaced, by an engine with its own copy of the weights.
"""

import math
import os
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import trl.generation.vllm_generation as backend

from harness import ANSWERS, OFF, ON, largest_difference, relative_difference, run
from tiny_models import tiny_policy

SAME = ("<think>blur</think><answer>3.00</answer>",)  # no spread of rewards: no policy gradient


class Engine:
    """Gives fixed answers in turn. Its log-probabilities are those of its weights, plus `shift` at each token."""

    def __init__(self, shift: float, answers: tuple[str, ...]):
        self.model, self.processor = tiny_policy(seed=1)  # others than the trainer's: only a sync makes them agree
        self.model.eval()
        self.shift, self.answers = shift, answers
        self.syncs = self.answered = 0

    def load(self, named_parameters) -> None:
        own = dict(self.model.named_parameters())
        for name, parameter in named_parameters:
            own[name].data.copy_(parameter)

    def finish_sync(self) -> None:
        self.syncs += 1

    def answer(self, prompt: list[int], images: list) -> tuple[list[int], list[float]]:
        tokenizer = self.processor.tokenizer
        ids = tokenizer.encode(self.answers[self.answered % len(self.answers)], add_special_tokens=False)
        ids = [*ids, tokenizer.eos_token_id]
        self.answered += 1
        tokens = torch.tensor([prompt + ids])
        pixels = self.processor.image_processor(images=images, return_tensors="pt")
        types = (tokens == self.model.config.image_token_id).int()
        with torch.no_grad():
            logits = self.model(input_ids=tokens, mm_token_type_ids=types, **pixels).logits[0]
        logps = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(ids).unsqueeze(1)).squeeze(1)
        return ids, (logps + self.shift).tolist()


class Colocated:
    """`vllm.LLM`, as far as TRL uses it."""

    def __init__(self, engine: Engine):
        self.engine = engine
        worker = SimpleNamespace(model_runner=SimpleNamespace(model=SimpleNamespace(load_weights=engine.load)))
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker))
        self.reset_prefix_cache = engine.finish_sync

    def generate(self, prompts, sampling_params, use_tqdm):
        return [self.row(p["prompt_token_ids"], [p["multi_modal_data"]["image"]]) for p in prompts]

    def row(self, prompt, images):
        ids, logps = self.engine.answer(prompt, images)
        tokens = [{i: SimpleNamespace(logprob=value, rank=1)} for i, value in zip(ids, logps, strict=True)]
        return SimpleNamespace(prompt_token_ids=prompt, outputs=[SimpleNamespace(token_ids=ids, logprobs=tokens)])


class Client:
    """TRL's client of a vLLM server."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.reset_prefix_cache = engine.finish_sync

    def init_communicator(self, device):
        pass

    def get_server_info(self):
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}

    def update_named_params(self, metadata, named_parameters):
        self.engine.load(named_parameters)

    def image_features(self, images):
        return [{"images": row, "mm_placeholders": {"image": [{}] * len(row)}} for row in images]

    def generate(self, prompts, features, n, **sampling_params):
        pairs = zip(prompts, features, strict=True)
        rows = [self.engine.answer(prompt, seen["images"]) for prompt, seen in pairs for _ in range(n)]
        return {
            "prompt_ids": prompts,
            "completion_ids": [ids for ids, _ in rows],
            "logprobs": [[[value] for value in logps] for _, logps in rows],
        }


@pytest.fixture(params=["colocate", "server"])
def train(request, tmp_path, monkeypatch):
    """Trains with vLLM in one of its modes; returns the run and the engine."""
    monkeypatch.setattr(backend, "is_vllm_available", lambda: True)
    monkeypatch.setattr(backend, "SamplingParams", lambda **kwargs: kwargs, raising=False)

    def train(shift: float = 0.0, answers: tuple[str, ...] = ANSWERS, **options):
        engine = Engine(shift, answers)
        monkeypatch.setattr(backend, "LLM", lambda **kwargs: Colocated(engine), raising=False)
        monkeypatch.setattr(backend, "VLLMClient", lambda **kwargs: Client(engine))
        vllm = {"use_vllm": True, "vllm_mode": request.param, "scripted": None}
        return run(tmp_path, **vllm, **options), engine

    with mock.patch.dict(os.environ):  # TRL sets the rank there
        yield train


def test_terms_act_and_off_is_stock(train):
    on, engine = train(max_steps=2, **ON)
    assert (engine.syncs, engine.answered) == (2, 16)
    for line in on.logs:
        assert 1e-6 < line["perception/kl"] < 10
        assert line["perception/entropy_original"] > 0
        assert line["perception/entropy_degraded"] > 0
        assert 0 < line["uncertainty/weight_min"] < 1
        # the engine saw the original image under the trainer's weights of this very step
        assert line["sampling/sampling_logp_difference/max"] < 1e-4
    off, _ = train(max_steps=2, **OFF)
    stock, _ = train(max_steps=2, stock=True)
    assert largest_difference(off.parameters, stock.parameters) == 0.0
    assert largest_difference(on.parameters, off.parameters) > 1e-5


def test_is_the_run_with_the_same_completions_from_elsewhere(train, tmp_path):
    ours, _ = train(**ON)
    scripted = run(tmp_path, **ON)
    assert relative_difference(ours.gradients[0], scripted.gradients[0]) < 1e-4


def test_prompts_are_shared_with_vllm_too(train):
    plain, _ = train(**ON)
    shared, _ = train(shared_prefix="auto", **ON)
    assert shared.trainer._shares_prefix["train"]
    assert relative_difference(shared.gradients[0], plain.gradients[0]) < 1e-4


def test_importance_ratio_is_used(train):
    done, engine = train(shift=-0.02, vllm_importance_sampling_mode="sequence_truncate", **ON)
    tokenizer = engine.processor.tokenizer
    lengths = [len(tokenizer.encode(answer, add_special_tokens=False)) + 1 for answer in ANSWERS]
    expected = sum(min(math.exp(0.02 * length), 3.0) for length in lengths) / len(lengths)
    assert done.logs[0]["sampling/importance_sampling_ratio/mean"] == pytest.approx(expected, rel=1e-4)
    assert expected > 1.2
    exact, _ = train(vllm_importance_sampling_mode="sequence_truncate", **ON)
    assert relative_difference(done.gradients[0], exact.gradients[0]) > 0.01


def test_importance_ratio_leaves_the_perception_terms_alone(train):
    # without a policy gradient only they are left
    shifted, _ = train(shift=-0.02, answers=SAME, **ON)
    exact, _ = train(answers=SAME, **ON)
    assert shifted.logs[0]["sampling/importance_sampling_ratio/mean"] > 1.2
    assert relative_difference(shifted.gradients[0], exact.gradients[0]) < 1e-6
