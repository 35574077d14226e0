"""Settings of a run as JSON: nothing secret, nothing lost."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from trl import ModelConfig

from q_hawkeye_trl import HawkeyeGRPOConfig
from q_hawkeye_trl.run_facts.settings import (
    HIDDEN,
    changed_settings,
    hide_secret_options,
    hide_secrets,
    plain,
    settings_of,
)

SECRET = "correct-horse-battery"
TOKEN = "hf_" + "a1B2" * 9


@pytest.mark.parametrize(
    "settings",
    [
        {"hub_token": SECRET},
        {"HF_TOKEN": SECRET},
        {"push_to_hub_token": SECRET},
        {"apiKey": SECRET},
        {"API-KEY": SECRET},
        {"openaiApiKey": SECRET},
        {"key": [SECRET]},
        {"tokens": {"a": SECRET}},
        {"db_password": SECRET},
        {"Authorization": f"Bearer {SECRET}"},
        {"deep": [{"er": {"client_secret": SECRET}}]},
        {"server": f"http://user:{SECRET}@host:8000/v1"},
        {"server": f"http://host:8000/v1?api_key={SECRET}&x=1"},
        {"header": f"Bearer {SECRET}"},
        {"command": f"run --token={SECRET}"},
        {"kwargs": json.dumps({"model": {"token": SECRET}})},
    ],
)
def test_secrets_are_hidden(settings):
    hidden = hide_secrets(settings)
    assert SECRET not in json.dumps(hidden)
    assert HIDDEN in json.dumps(hidden)


def test_texts_that_look_like_a_token_are_hidden_wherever_they_stand():
    assert hide_secrets({"note": f"from {TOKEN} on"}) == {"note": f"from {HIDDEN} on"}


def test_numbers_under_a_password_are_hidden_and_limits_of_tokens_are_not():
    shown = {"max_tokens": 24, "num_input_tokens": 3.0, "skip_special_tokens": True, "tokenizer": "a", "monkey": "b"}
    shown |= {"include_num_input_tokens_seen": "no", "hub_token": None, "note": "keyboard", "path": "a/b@c"}
    assert hide_secrets(shown) == shown
    assert hide_secrets({"password": 1234, "token": "1234"}) == {"password": HIDDEN, "token": HIDDEN}


def test_the_configs_own_secrets(tmp_path):
    args = HawkeyeGRPOConfig(
        output_dir=str(tmp_path),
        bf16=False,
        use_cpu=True,
        hub_token=SECRET,
        model_init_kwargs={"token": SECRET, "dtype": torch.float32},
        vllm_server_base_url=f"http://me:{SECRET}@localhost:8000",
    )
    settings = settings_of(args)
    text = json.dumps(settings, allow_nan=False)
    assert SECRET not in text
    assert text.count(HIDDEN) == 3
    assert settings["max_completion_length"] == args.max_completion_length
    assert settings["lr_scheduler_type"] == "linear"
    assert settings["degradation_seed"] == 0
    assert {"hub_token", "model_init_kwargs", "bf16", "vllm_server_base_url"} <= set(changed_settings(args))
    assert "degradation_seed" not in changed_settings(args)


def test_what_differs_from_the_defaults():
    assert changed_settings(ModelConfig()) == []
    assert changed_settings(ModelConfig(lora_r=8, use_peft=True)) == ["use_peft", "lora_r"]


@dataclass
class Odd:
    needed: object
    limit: float = float("inf")
    names: set = field(default_factory=lambda: {"b", "a"})


def test_values_that_json_does_not_know():
    odd = Odd(needed=[Path("a/b"), torch.float16, torch.device("cpu"), object(), (1, None)])
    assert settings_of(odd) == {
        "needed": ["a/b", "torch.float16", "cpu", "<builtins.object>", [1, None]],
        "limit": "inf",
        "names": ["a", "b"],
    }
    assert changed_settings(odd) == ["needed"]
    assert plain(float("nan")) == "nan"


def test_secrets_on_a_command_line():
    words = ["--hub_token", "staple", "--password=horse", "--max_steps", "3", "--top_tokens", "5", "--seeds", "0", "1"]
    hidden = ["--hub_token", HIDDEN, f"--password={HIDDEN}", *words[3:]]
    assert hide_secret_options(words) == hidden
    assert hide_secret_options([]) == []
