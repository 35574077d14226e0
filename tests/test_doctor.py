"""`q-hawkeye doctor`: recipe, order of the checks, output, exit status."""

import importlib.metadata
import json
import logging
import os
import warnings
from pathlib import Path

import pytest
import torch

from doctor_plans import saved_splits, three_splits
from q_hawkeye_trl.data.folder import load_folder
from q_hawkeye_trl.doctor import LEVELS, Plan, environment, hardware
from q_hawkeye_trl.doctor.examination import examine
from q_hawkeye_trl.run_facts.fingerprint import data_fingerprint
from test_cli_score import q_hawkeye

ROOT = Path(__file__).parents[1]
RELEASE = ROOT / "recipes" / "koniq" / "qwen2_5_vl_7b.yaml"
SECRET = "correct-horse-battery"


@pytest.fixture(autouse=True)
def no_deepspeed(monkeypatch):
    """DeepSpeed takes seconds to import; test_doctor_environment.py checks it."""
    monkeypatch.setattr(environment, "import_deepspeed", lambda: None)


@pytest.fixture
def tiny_recipe(tmp_path):
    def make(*lines: str) -> str:
        text = ["bf16: false", "use_cpu: true", f"output_dir: {tmp_path}/run", "save_strategy: 'no'", *lines]
        (tmp_path / "recipe.yaml").write_text("\n".join(text) + "\n")
        return str(tmp_path / "recipe.yaml")

    return make


def levels(result, area) -> list[str]:
    return [finding.level for finding in result.findings if finding.area == area]


def test_a_machine_without_problems(tmp_path):
    output = q_hawkeye("doctor", "--output_dir", tmp_path / "run", "--json", tmp_path / "doctor.json")
    written = json.loads((tmp_path / "doctor.json").read_text())
    assert {finding["level"] for finding in written["findings"]} <= {"ok", "warning"}
    assert set(written["findings"][0]) == {"area", "level", "text", "advice"}
    assert set(written["facts"]) == {"versions", "platform", "git", "device"}
    assert "0 problems" in output
    assert f"trl {written['facts']['versions']['trl']}" in " ".join(output.split())
    assert not (tmp_path / "run").exists()
    assert "doctor.json" in q_hawkeye("doctor", "--json", tmp_path / "doctor.json", status=1)


def test_a_problem_exits_with_1_and_a_warning_with_0(tmp_path, monkeypatch):
    assert "1 problem, " in q_hawkeye("doctor", "--data", tmp_path / "missing", status=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(hardware, "driver_version", lambda: None)
    assert "0 problems, 1 warning" in q_hawkeye("doctor")


def test_every_finding_that_is_not_ok_has_advice(tmp_path):
    result = examine(Plan(data=str(tmp_path / "missing"), model="nobody/nothing", output_dir=str(tmp_path)))
    assert {finding.level for finding in result.findings} <= set(LEVELS)
    assert all(bool(finding.advice) == (finding.level != "ok") for finding in result.findings)


def test_a_recipe_and_its_data(tiny_recipe, tmp_path):
    data = saved_splits(tmp_path / "data", **three_splits()).data
    result = examine(Plan(config=tiny_recipe("seed: 7", f"dataset: {data}")), fingerprint=True)
    assert levels(result, "recipe") == levels(result, "data train") == levels(result, "disk") == ["ok"]
    assert result.facts["seeds"] == {"seed": 7, "data_seed": None, "degradation_seed": 0}
    assert result.facts["settings"]["HawkeyeGRPOConfig"]["save_strategy"] == "no"
    assert "seed" in result.facts["changed"]["HawkeyeGRPOConfig"]
    assert result.facts["data"]["test"]["sha256"] == data_fingerprint(load_folder(data, "test"))["sha256"]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("learning_rat: 1.0e-5", "learning_rate"),
        ("perception_gamma: -1", "perception_gamma"),
        ("rewards: accuracy", "rewards"),
        ("rewards: [acuracy, format]", "acuracy"),
        ("reward_parameters: {accuracy: {teu: 0.5}}", "teu"),
        ("reward_parameters: {accuracy: 0.5}", "0.5"),
        ("uncertainty_weighting: cubic", "cubic"),
        ("learning_rate: fast", "fast"),
    ],
)
def test_a_recipe_with_a_fault(tiny_recipe, line, part):
    result = examine(Plan(config=tiny_recipe(line)))
    (found,) = [finding for finding in result.findings if finding.area == "recipe"]
    assert found.level == "problem"
    assert part in found.text
    assert levels(result, "TRL") == ["ok"]  # the other checks still run


def test_a_missing_recipe(tmp_path):
    assert levels(examine(Plan(config=str(tmp_path / "none.yaml"))), "recipe") == ["problem"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_recipe_of_the_release_on_a_machine_without_gpu():
    result = examine(Plan(config=str(RELEASE)))
    (found,) = [finding for finding in result.findings if finding.area == "recipe"]
    assert found.level == "problem"
    assert "GPU" in found.text
    assert levels(result, "GPU") == ["warning"]
    assert levels(result, "attention") == ["problem"]
    assert result.facts["settings"]["HawkeyeGRPOConfig"]["bf16"] is True


def test_options_override_the_recipe(tiny_recipe, tmp_path):
    config = tiny_recipe("model_name_or_path: nobody/nothing")
    assert levels(examine(Plan(config=config)), "model") == ["problem"]  # not cached, and tests are offline
    folder = ROOT / "src" / "q_hawkeye_trl" / "demo" / "weights"
    result = examine(Plan(config=config, model=str(folder), output_dir=str(tmp_path)))
    assert levels(result, "model") == ["ok"]
    assert levels(result, "output_dir") == ["warning"]


def test_a_check_that_raises_does_not_stop_the_others(monkeypatch):
    def broken(plan):
        yield hardware.ok("GPU", "one")
        raise ImportError("libcudart.so.13: cannot open shared object file\nmore")

    monkeypatch.setattr(hardware, "check_gpu", broken)
    result = examine(Plan())
    found = [finding for finding in result.findings if finding.area == "GPU"]
    assert [finding.level for finding in found] == ["ok", "problem"]
    assert "ImportError: libcudart.so.13: cannot open shared object file" in found[1].text
    assert levels(result, "cores")


def test_without_torch_the_report_ends_early(monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name == "torch":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(hardware, "check_gpu", None)
    result = examine(Plan())
    assert [finding.text for finding in result.findings if finding.level == "problem"] == ["torch is missing"]
    assert set(result.facts) >= {"versions", "platform", "git"}


def test_no_secret_is_printed_or_written(tiny_recipe, tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://me:{SECRET}@host")
    out = tmp_path / "doctor.json"
    for line, status in (
        (f"vllm_server_base_url: http://me:{SECRET}@host:8000", 0),
        (f"reward_parameters: 'token={SECRET}'", 1),
    ):
        recipe = tiny_recipe(f"hub_token: {SECRET}", line)
        output = q_hawkeye("doctor", "--config", recipe, "--json", out, "--overwrite", status=status)
        assert SECRET not in output + out.read_text()


def test_a_secret_in_an_unexpected_error_is_not_printed(monkeypatch):
    def broken(plan):
        raise RuntimeError(f"no answer from http://me:{SECRET}@host\x1b[31m")

    monkeypatch.setattr(hardware, "check_gpu", broken)
    output = q_hawkeye("doctor", status=1)
    assert SECRET not in output
    assert "\x1b[31m" not in output


def test_global_state_is_restored():
    before = logging.root.manager.disable, list(warnings.filters), dict(os.environ)
    examine(Plan())
    assert (logging.root.manager.disable, list(warnings.filters)) == before[:2]
    assert {key: value for key, value in os.environ.items() if key not in before[2]} == {}
