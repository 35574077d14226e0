"""The doctor's checks of Python, packages, TRL and DeepSpeed."""

import importlib.metadata
import json
import platform
import shutil
import subprocess
from types import SimpleNamespace

import pytest
from trl import GRPOTrainer, import_utils

from doctor_plans import findings, levels, planned
from q_hawkeye_trl.doctor import Plan, environment

# Packages


@pytest.fixture
def installed(monkeypatch):
    """Versions by name that replace the installed ones; `None` is a missing package."""
    versions: dict[str, str | None] = {}
    real = importlib.metadata.version

    def version(name):
        if name in versions and versions[name] is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    return versions


@pytest.fixture
def metadata(monkeypatch):
    """Requirements of the project that don't depend on setup.cfg."""
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: {"Requires-Python": "<3.14,>=3.11"})
    requirements = ["trl<1.17,>=1.16", "transformers<6,>=5.23", "torch", 'vllm; extra == "vllm"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requirements)


def test_this_environment_is_fine():
    assert levels(environment.check_packages) == ["ok", "ok"]


@pytest.mark.parametrize(
    ("name", "version", "ranges"),
    [
        ("trl", "1.15.9", ">=1.16,<1.17"),
        ("trl", "1.17.0", ">=1.16,<1.17"),
        ("trl", "1.17.0rc1", ">=1.16,<1.17"),
        ("trl", "2.0", ">=1.16,<1.17"),
        ("transformers", "6.0.0", ">=5.23,<6"),
        ("transformers", "5.3.0", ">=5.23,<6"),  # 3 < 23 as numbers, not as text
        ("torch", None, ""),
    ],
)
def test_a_version_out_of_range(metadata, installed, name, version, ranges):
    installed[name] = version
    _, problem = findings(environment.check_packages)
    assert problem.level == "problem"
    assert problem.text == (f"{name} {version} is not {ranges}" if version else f"{name} is missing")
    assert problem.advice == f'pip install "{name}{ranges}"'


@pytest.mark.parametrize("version", ["1.16", "1.16.0", "1.16.9+local", "1.16.1.post1"])
def test_a_version_in_range(metadata, installed, version):
    installed["trl"] = version
    assert levels(environment.check_packages) == ["ok", "ok"]


@pytest.mark.parametrize(("version", "level"), [("3.10.14", "problem"), ("3.14.0", "problem"), ("3.13.1", "ok")])
def test_python(metadata, monkeypatch, version, level):
    monkeypatch.setattr(platform, "python_version", lambda: version)
    first = findings(environment.check_packages)[0]
    assert (first.area, first.level) == ("python", level)
    assert ">=3.11,<3.14" in first.text


def test_a_project_that_is_not_installed(monkeypatch):
    def nothing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "metadata", nothing)
    (found,) = findings(environment.check_packages)
    assert found.level == "problem"
    assert "pip install -e ." in found.advice


def test_a_changed_trl(monkeypatch):
    assert levels(environment.check_trl) == ["ok"]
    monkeypatch.setattr(GRPOTrainer, "_calculate_rewards", lambda self, inputs, weights: None)
    (found,) = findings(environment.check_trl)
    assert found.level == "problem"
    assert "_calculate_rewards" in found.text


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("vllm", {"use_vllm": True}),
        ("bitsandbytes", {"optim": "adamw_bnb_8bit"}),
        ("bitsandbytes", {"model_args": SimpleNamespace(load_in_4bit=True, load_in_8bit=False)}),
        ("deepspeed", {"deepspeed": "zero.json"}),
        ("liger-kernel", {"use_liger_kernel": True}),
    ],
)
def test_an_optional_package_is_a_problem_only_if_it_is_needed(installed, name, needed):
    installed[name] = None
    for plan, level in ((planned(), "ok"), (planned(**needed), "problem")):
        (finding,) = [finding for finding in findings(environment.check_optional, plan) if finding.area == name]
        assert finding.level == level
        assert ("pip install" in finding.advice) == (level == "problem")


@pytest.mark.parametrize(
    ("version", "importable", "level"),
    [("0.25.0", True, "ok"), ("0.5.0", True, "warning"), ("9.0.0", True, "warning"), ("0.25.0", False, "problem")],
)
def test_vllm_in_and_out_of_trls_range(installed, monkeypatch, version, importable, level):
    installed["vllm"] = version
    monkeypatch.setattr(import_utils, "_is_package_available", lambda *_, **__: (importable, version))
    (finding,) = [finding for finding in findings(environment.check_optional) if finding.area == "vllm"]
    assert finding.level == level
    assert version in finding.text


# DeepSpeed


def deepspeed_findings(monkeypatch, code: str | None = None, plan: Plan | None = None, **facts):
    """The findings of a process that runs `code`, or prints these facts."""
    everything = {"accelerator": "cpu", "cuda_home": None, "cuda": "13.0", "gpus": 0}
    everything |= {"able": {"CPUAdamBuilder": True, "FusedAdamBuilder": True}}
    output = json.dumps(json.dumps(everything | facts))
    monkeypatch.setattr(environment, "_IMPORT_DEEPSPEED", code or f"print('a line of a library'); print({output})")
    plan = plan or Plan()
    plan.deepspeed = environment.import_deepspeed()
    with plan.deepspeed:
        try:
            return findings(environment.check_deepspeed, plan)
        finally:
            plan.deepspeed.kill()


@pytest.fixture
def tools(monkeypatch):
    """Tools in PATH."""
    present = {"c++", "ninja", "nvcc"}
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name in present else None)
    return present


def test_the_installed_deepspeed():
    imported, operators = findings(environment.check_deepspeed, Plan(deepspeed=environment.import_deepspeed()))
    assert imported.level == "ok"
    assert "for cpu" in imported.text
    assert operators.area == "DeepSpeed operators"


def test_without_deepspeed_nothing_is_started(installed, monkeypatch):
    installed["deepspeed"] = None
    monkeypatch.setattr(subprocess, "Popen", None)
    assert environment.import_deepspeed() is None
    assert findings(environment.check_deepspeed) == []


def test_an_import_that_fails_is_a_problem_only_if_it_is_needed(monkeypatch):
    code = "raise SystemExit('MissingCUDAException: CUDA_HOME does not exist')"
    (found,) = deepspeed_findings(monkeypatch, code)
    assert found.level == "warning"
    assert "CUDA_HOME does not exist" in found.text
    assert "DS_ACCELERATOR=cpu" in found.advice
    assert deepspeed_findings(monkeypatch, code, planned(deepspeed="zero.json"))[0].level == "problem"


def test_an_import_that_hangs(monkeypatch):
    monkeypatch.setattr(environment, "_IMPORT_SECONDS", 0.2)
    (found,) = deepspeed_findings(monkeypatch, "import time; time.sleep(60)")
    assert found.level == "warning"
    assert "0.2 seconds" in found.text


@pytest.mark.parametrize(
    ("facts", "missing", "part"),
    [
        ({}, {"ninja"}, "without ninja"),
        ({}, {"c++", "ninja"}, "without c++ and ninja"),
        ({"accelerator": "cuda", "gpus": 1}, {"nvcc"}, "without nvcc"),
        ({"able": {"CPUAdamBuilder": False, "FusedAdamBuilder": True}}, set(), "CPUAdam can't be built"),
    ],
)
def test_operators_that_cannot_be_built(monkeypatch, tools, facts, missing, part):
    tools -= missing
    imported, operators = deepspeed_findings(monkeypatch, **facts)
    assert (imported.level, operators.level) == ("ok", "warning")
    assert part in operators.text


@pytest.mark.parametrize(("version", "level"), [("12.4", "warning"), ("13.2", "ok"), (None, "ok")])
def test_nvcc_against_the_cuda_of_torch(monkeypatch, tools, tmp_path, version, level):
    if version is not None:
        (tmp_path / "nvcc").write_text(
            f"#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}.131'\n"
        )
        (tmp_path / "nvcc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    _, operators = deepspeed_findings(monkeypatch, accelerator="cuda", gpus=1)
    assert operators.level == level
    assert level == "ok" or ("12.4" in operators.text and "13.0" in operators.text)


def test_deepspeed_for_the_cpu_despite_gpus(monkeypatch, tools):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    found = deepspeed_findings(monkeypatch, gpus=2)
    assert found[0].level == "warning"
    assert "DS_ACCELERATOR=cpu" in found[0].text
