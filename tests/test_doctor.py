"""`q-hawkeye doctor`: recipe, order of the checks, what is printed and written, exit status."""

import importlib.metadata
import json
import logging
import os
import warnings
from pathlib import Path

import pytest
import torch

from q_hawkeye_trl import cli
from q_hawkeye_trl.doctor import deepspeed, examination, gpu, packages, recipe
from q_hawkeye_trl.doctor.examination import examine
from q_hawkeye_trl.doctor.finding import LEVELS
from q_hawkeye_trl.run_facts.fingerprint import data_fingerprint
from test_cli_score import q_hawkeye
from test_doctor_data import three, write

ROOT = Path(__file__).parents[1]
RELEASE = ROOT / "recipes" / "koniq" / "qwen2_5_vl_7b.yaml"
SECRET = "correct-horse-battery"


@pytest.fixture(autouse=True)
def no_probe(monkeypatch):
    """DeepSpeed is asked in test_doctor_system.py."""
    monkeypatch.setattr(deepspeed.DeepSpeedProbe, "__init__", lambda self: setattr(self, "process", None))


@pytest.fixture
def tiny_recipe(tmp_path):
    path = tmp_path / "recipe.yaml"

    def make(*lines: str) -> Path:
        text = ["bf16: false", "use_cpu: true", f"output_dir: {tmp_path}/run", "save_strategy: 'no'", *lines]
        path.write_text("\n".join(text) + "\n")
        return path

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
    assert "exists" in q_hawkeye("doctor", "--json", tmp_path / "doctor.json", status=1)


def test_a_problem_ends_with_1_and_a_warning_with_0(tmp_path, monkeypatch):
    assert " problem, " in q_hawkeye("doctor", "--data", tmp_path / "missing", status=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "driver_version", lambda: None)
    assert "0 problems, 1 warning" in q_hawkeye("doctor")


def test_every_finding_that_is_not_ok_has_advice(tmp_path):
    result = examine(data=str(tmp_path / "missing"), model="nobody/nothing", output_dir=str(tmp_path))
    assert {finding.level for finding in result.findings} <= set(LEVELS)
    assert all(bool(finding.advice) == (finding.level != "ok") for finding in result.findings)


def test_a_recipe_and_its_data(tiny_recipe, tmp_path):
    data = write(tmp_path / "data", **three()).data
    result = examine(config=str(tiny_recipe("seed: 7", f"dataset: {data}")), fingerprint=True)
    assert levels(result, "recipe") == ["ok"]
    assert levels(result, "data train") == ["ok"]
    assert levels(result, "disk") == ["ok"]
    assert result.facts["seeds"] == {"seed": 7, "data_seed": None, "degradation_seed": 0}
    assert result.facts["settings"]["HawkeyeGRPOConfig"]["save_strategy"] == "no"
    assert "seed" in result.facts["changed"]["HawkeyeGRPOConfig"]
    from q_hawkeye_trl.data.folder import load_folder

    assert result.facts["data"]["test"]["sha256"] == data_fingerprint(load_folder(data, "test"))["sha256"]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("learning_rat: 1.0e-5", "learning_rate"),
        ("perception_gamma: -1", "perception_gamma is -1"),
        ("rewards: accuracy", "give a list"),
        ("rewards: [acuracy, format]", "Unknown reward 'acuracy'"),
        ("reward_parameters: {accuracy: {teu: 0.5}}", "no parameter `teu`"),
        ("reward_parameters: {accuracy: 0.5}", "gives accuracy 0.5"),
        ("uncertainty_weighting: cubic", "cubic"),
        ("learning_rate: fast", "fast"),
    ],
)
def test_a_recipe_with_a_fault(tiny_recipe, line, part):
    result = examine(config=str(tiny_recipe(line)))
    (found,) = [finding for finding in result.findings if finding.area == "recipe"]
    assert found.level == "problem"
    assert part in found.text
    assert levels(result, "TRL") == ["ok"]  # the rest is looked at all the same


def test_a_recipe_that_is_not_there(tmp_path):
    assert levels(examine(config=str(tmp_path / "none.yaml")), "recipe") == ["problem"]


def test_a_recipe_without_the_training_script(tiny_recipe, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recipe, "__file__", str(tmp_path / "a" / "b" / "c" / "recipe.py"))
    assert recipe.find_script() is None
    assert levels(examine(config=str(tiny_recipe())), "recipe") == ["problem"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the recipe of the release has its GPU")
def test_the_recipe_of_the_release_on_a_machine_without_gpu():
    result = examine(config=str(RELEASE))
    (found,) = [finding for finding in result.findings if finding.area == "recipe"]
    assert found.level == "problem"
    assert "needs a GPU" in found.text
    assert levels(result, "GPU") == ["warning"]
    assert levels(result, "attention") == ["problem"]
    assert result.facts["settings"]["HawkeyeGRPOConfig"]["bf16"] is True


def test_what_a_recipe_needs_and_the_machine_lacks(tiny_recipe, monkeypatch):
    def missing(name):
        if name in ("vllm", "bitsandbytes", "liger-kernel"):
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(packages.importlib.metadata, "version", missing)
    found = packages.check_optional(examination._plan([], str(tiny_recipe("load_in_4bit: true")), model=None))
    by_area = {finding.area: finding.level for finding in found}
    assert by_area["bitsandbytes"] == "problem"
    assert by_area["vllm"] == by_area["liger-kernel"] == "ok"


def test_options_come_before_the_recipe(tiny_recipe, tmp_path):
    path = str(tiny_recipe("model_name_or_path: nobody/nothing"))
    assert levels(examine(config=path), "model") == ["problem"]  # not cached, and offline in tests
    folder = ROOT / "src" / "q_hawkeye_trl" / "demo" / "weights"
    assert levels(examine(config=path, model=str(folder)), "model") == ["ok"]
    assert levels(examine(config=path, output_dir=str(tmp_path)), "output_dir") == ["warning"]


def test_a_check_that_fails_itself_keeps_no_other_from_running(monkeypatch):
    def broken(plan):
        raise ImportError("libcudart.so.13: cannot open shared object file\nmore")

    monkeypatch.setattr(gpu, "check_gpu", broken)
    result = examine()
    (found,) = [finding for finding in result.findings if finding.area == "GPU"]
    assert found.level == "problem"
    assert "ImportError: libcudart.so.13: cannot open shared object file" in found.text
    assert levels(result, "cores")


def test_without_torch_the_report_ends_early(monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name == "torch":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(gpu, "check_gpu", None)
    result = examine()
    assert [finding.text for finding in result.findings if finding.level == "problem"] == ["torch is missing"]


def test_no_secret_is_printed_or_written(tiny_recipe, tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://me:{SECRET}@host")
    path = tiny_recipe(f"hub_token: {SECRET}", f"vllm_server_base_url: http://me:{SECRET}@host:8000")
    out = tmp_path / "doctor.json"
    output = q_hawkeye("doctor", "--config", path, "--json", out)
    assert SECRET not in output + out.read_text()
    path = tiny_recipe(f"hub_token: {SECRET}", "reward_parameters: 'token={SECRET}'".replace("{SECRET}", SECRET))
    output = q_hawkeye("doctor", "--config", path, "--json", out, "--overwrite", status=1)
    assert SECRET not in output + out.read_text()


def test_a_secret_in_an_unforeseen_error_is_not_told(monkeypatch):
    def broken(plan):
        raise RuntimeError(f"no answer from http://me:{SECRET}@host\x1b[31m")

    monkeypatch.setattr(gpu, "check_gpu", broken)
    output = q_hawkeye("doctor", status=1)
    assert SECRET not in output
    assert "\x1b[31m" not in output


def test_what_it_silences_it_gives_back():
    before = logging.root.manager.disable, list(warnings.filters), dict(os.environ)
    examine()
    assert (logging.root.manager.disable, list(warnings.filters)) == before[:2]
    assert {key: value for key, value in os.environ.items() if key not in before[2]} == {}


def test_the_command_is_among_the_others():
    assert "doctor" in {command.name or command.callback.__name__ for command in cli.app.registered_commands}
