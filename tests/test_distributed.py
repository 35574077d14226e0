"""
Data parallelism and DeepSpeed in two real CPU processes train as one process does, whatever the feature.

With `SCALING_RESULTS=FILE` in the environment the deviations go there, for the table of docs/scaling.md.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

import distributed_cases as cases
from harness import largest_difference

WRAPPERS = {
    "DDP": "DistributedDataParallel",
    "ZeRO-1": "DeepSpeedEngine, stage 1",
    "ZeRO-2": "DeepSpeedEngine, stage 2",
    "ZeRO-3": "DeepSpeedEngine, stage 3",
    "ZeRO-3 offload": "DeepSpeedEngine, stage 3, offload",
}
LOSS_BOUND = 1e-6
"""Losses lie between 0.1 and 0.5, where a float32 is exact to 3e-8: some thirty roundings. The two ranks add the same
terms in another order."""
WEIGHT_BOUND = {"sgd": 1e-6, "adamw_torch": 1e-4}
"""
SGD adds the gradient times 0.1 to weights of up to 4, which are exact to 2.4e-7: a few roundings. AdamW divides each
gradient by its own size, so that where a gradient is 0 but for rounding it still makes steps of up to the learning
rate: the bound is a thirtieth of what three steps of 1e-3 can move a weight.
"""
CHEAP = ("LoRA, beta 0.04", "shared prompts, all at once")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    cases.prepare(folder)
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    """One process by feature, trained when it is first asked for."""
    kept: dict[str, dict] = {}

    def train(feature: str) -> dict:
        if feature not in kept:
            kept[feature] = cases.train(folder, cases.FEATURES[feature])
        return kept[feature]

    return train


@pytest.fixture(scope="module")
def start(folder) -> dict[str, torch.Tensor]:
    model = AutoModelForImageTextToText.from_pretrained(folder / "policy", dtype=torch.float32)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def ranks(request, folder) -> tuple[str, list[dict[str, dict]]]:
    backend, features = request.param
    return backend, cases.in_two_processes(folder, backend, list(features))


@pytest.fixture(scope="module", autouse=True)
def measured():
    """Deviations by backend and feature, merged into the results file at the end."""
    figures: dict[str, dict[str, dict]] = {}
    yield figures
    if path := os.environ.get("SCALING_RESULTS"):
        kept = json.loads(Path(path).read_text()) if Path(path).is_file() else {}
        merged = {backend: {**kept.get(backend, {}), **figures.get(backend, {})} for backend in cases.BACKENDS}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps({backend: found for backend, found in merged.items() if found}, indent=2))


def assert_as_one_process(backend: str, ranks: list[dict], expected: dict, optimizer: str) -> None:
    for seen in ranks:
        assert seen["world_size"] == 2
        assert seen["wrapper"] == WRAPPERS[backend]
        deviation = cases.deviations(seen, expected)
        assert deviation["loss"] < LOSS_BOUND
        assert deviation["weight"] < WEIGHT_BOUND[optimizer]
    first, second = ranks
    assert first["forwards"] == second["forwards"] == expected["forwards"]
    assert first["collectives"] == second["collectives"] > 0
    assert largest_difference(first["parameters"], second["parameters"]) == 0


def optimizer_of(feature: str) -> str:
    return {**cases.SGD, **cases.FEATURES[feature]}["optim"]


@pytest.mark.parametrize("ranks", [("DDP", CHEAP)], indirect=True, ids=["DDP"])
@pytest.mark.parametrize("feature", CHEAP)
def test_the_most_complex_features(ranks, alone, feature):
    backend, seen = ranks
    assert_as_one_process(backend, [rank[feature] for rank in seen], alone(feature), optimizer_of(feature))


@pytest.mark.slow
@pytest.mark.parametrize(
    "ranks", [(backend, tuple(cases.FEATURES)) for backend in cases.BACKENDS], indirect=True, ids=cases.BACKENDS
)
@pytest.mark.parametrize("feature", cases.FEATURES)
def test_two_processes_equal_one(ranks, alone, measured, feature):
    backend, seen = ranks[0], [rank[feature] for rank in ranks[1]]
    assert_as_one_process(backend, seen, alone(feature), optimizer_of(feature))
    deviations = [cases.deviations(rank, alone(feature)) for rank in seen]
    measured.setdefault(backend, {})[feature] = {
        **{name: max(deviation[name] for deviation in deviations) for name in ("loss", "weight")},
        "between_ranks": largest_difference(seen[0]["parameters"], seen[1]["parameters"]),
        "wrapper": seen[0]["wrapper"],
        "collectives": seen[0]["collectives"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("feature", cases.FEATURES)
def test_a_feature_changes_weights_and_losses(alone, start, feature):
    """So that equality says something: the weights move by a thousand bounds, and the feature changes the losses."""
    whole, plain = alone(feature), alone("gradient accumulation")
    if "LoRA" not in feature:
        assert largest_difference(whole["parameters"], start) > 1000 * WEIGHT_BOUND["sgd"]
    felt = max(abs(ours - theirs) for ours, theirs in zip(whole["losses"], plain["losses"], strict=True))
    changes_nothing = ("gradient accumulation", "activation checkpointing", "shared prompts")
    assert (felt > 10 * LOSS_BOUND) == (feature not in changes_nothing)
