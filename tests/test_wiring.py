"""What the configuration says reaches the formulas, and what rollouts and ranks give reaches the right rows."""

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from transformers import Qwen2Config, Qwen2ForCausalLM

import q_hawkeye_trl.degraded_batch as degraded_batch
import q_hawkeye_trl.trainer as trainer_module
from harness import ON, build_trainer, largest_difference, relative_difference, run
from q_hawkeye_trl.data.degradations import degraded_views, pixel_hash
from q_hawkeye_trl.evaluation.held_out import evaluate_held_out
from q_hawkeye_trl.evaluation.sharded import evaluate_sharded
from tiny_models import tiny_dataset

CONFIG = {
    "score_min": 0.0,
    "score_max": 10.0,
    "uncertainty_alpha": 0.7,
    "uncertainty_weighting": "linear",
    "uncertainty_unparsed": "exclude",
    "normalize_uncertainty_weights": True,
    "perception_gamma": 0.06,
    "perception_gamma_schedule": "linear",
    "perception_gamma_zero_epoch": 3.0,
    "perception_kl_clip": 0.25,
    "entropy_original_coef": 0.02,
    "entropy_degraded_coef": 0.03,
    "degradations": ["gaussian_blur", "darken"],
    "degradation_seed": 7,
    "chat_template_kwargs": {"tone": "short"},
}
REACHES = {
    "rollout_uncertainty": {"score_min": 0.0, "score_max": 10.0, "unparsed": "exclude"},
    "score_statistics": {"score_min": 0.0, "score_max": 10.0},
    "uncertainty_weights": {"alpha": 0.7, "weighting": "linear", "normalize": True},
    "perception_gamma_at": {"gamma": 0.06, "schedule": "linear", "zero_epoch": 3.0},
    "perception_kl": {"clip": 0.25},
    "degraded_views": {"degradation_seed": 7},
    "apply_chat_template": {"tone": "short"},
}
"""By formula: the keywords with which the trainer must call it under `CONFIG`."""


def spy(monkeypatch, module, name: str) -> list[tuple]:
    """Keeps (positional, keyword, result) of every call of a function that goes on working."""
    calls, original = [], getattr(module, name)

    def spied(*args, **kwargs):
        result = original(*args, **kwargs)
        calls.append((args, kwargs, result))
        return result

    monkeypatch.setattr(module, name, spied)
    return calls


@pytest.fixture(scope="module")
def calls(tmp_path_factory) -> dict[str, list[tuple]]:
    """The calls of one training step under `CONFIG`, by formula."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        modules = {name: trainer_module if hasattr(trainer_module, name) else degraded_batch for name in REACHES}
        seen = {name: spy(monkeypatch, module, name) for name, module in modules.items()}
        run(tmp_path_factory.mktemp("config"), **CONFIG)
    return seen


@pytest.mark.parametrize("name", REACHES)
def test_the_configuration_reaches_the_formula(calls, name):
    assert calls[name]
    for _, given, _ in calls[name]:
        assert {key: given.get(key) for key in REACHES[name]} == REACHES[name]


def test_the_view_is_drawn_from_the_configured_kinds(calls):
    for positional, _, (_, kind) in calls["degraded_views"]:
        assert positional[1] == CONFIG["degradations"]
        assert kind in CONFIG["degradations"]
