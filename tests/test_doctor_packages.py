"""The doctor's look at Python, packages and TRL, each made to fail at the edge."""

import importlib.metadata
import platform
import warnings

import pytest
from trl import GRPOTrainer, import_utils

from q_hawkeye_trl.doctor.finding import Plan
from q_hawkeye_trl.doctor.packages import OPTIONAL, check_optional, check_packages, check_trl

REAL = importlib.metadata.version


@pytest.fixture
def installed(monkeypatch):
    """Overrides versions by name; `None` is a package that is missing."""
    versions: dict[str, str | None] = {}

    def version(name):
        if name in versions:
            if versions[name] is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return versions[name]
        return REAL(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    return versions


def test_this_environment_is_fine():
    assert [finding.level for finding in check_packages(Plan())] == ["ok", "ok"]


@pytest.mark.parametrize(
    ("name", "version", "requirement"),
    [
        ("trl", "1.15.9", "trl>=1.16,<1.17"),
        ("trl", "1.17.0", "trl>=1.16,<1.17"),
        ("trl", "1.17.0rc1", "trl>=1.16,<1.17"),
        ("trl", "2.0", "trl>=1.16,<1.17"),
        ("transformers", "6.0.0", "transformers>=5.23,<6"),
        ("transformers", "5.3.0", "transformers>=5.23,<6"),  # 3 < 23 as numbers, not as text
    ],
)
def test_a_version_out_of_range(installed, name, version, requirement):
    installed[name] = version
    found = [finding for finding in check_packages(Plan()) if finding.level == "problem"]
    (finding,) = found
    assert finding.text == f"{name} {version} is not {requirement.removeprefix(name)}"
    assert finding.advice == f'pip install "{requirement}"'


@pytest.mark.parametrize("version", ["1.16", "1.16.0", "1.16.9+local", "1.16.1.post1"])
def test_a_version_in_range(installed, version):
    installed["trl"] = version
    assert {finding.level for finding in check_packages(Plan())} == {"ok"}


def test_a_missing_package(installed):
    installed["openpyxl"] = None
    assert ("openpyxl is missing", 'pip install "openpyxl"') in [(f.text, f.advice) for f in check_packages(Plan())]


@pytest.mark.parametrize(("version", "level"), [("3.10.14", "problem"), ("3.14.0", "problem"), ("3.13.1", "ok")])
def test_python(monkeypatch, version, level):
    monkeypatch.setattr(platform, "python_version", lambda: version)
    first = check_packages(Plan())[0]
    assert (first.area, first.level) == ("python", level)
    assert ">=3.11,<3.14" in first.text


def test_a_project_that_is_not_installed(monkeypatch):
    def nothing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "metadata", nothing)
    (finding,) = check_packages(Plan())
    assert finding.level == "problem"
    assert "pip install -e ." in finding.advice


def test_the_hooked_methods(monkeypatch):
    assert [finding.level for finding in check_trl(Plan())] == ["ok"]

    def changed(self, inputs, weights):
        """What another TRL could look like."""

    monkeypatch.setattr(GRPOTrainer, "_calculate_rewards", changed)
    (finding,) = check_trl(Plan())
    assert finding.level == "problem"
    assert "_calculate_rewards" in finding.text


@pytest.mark.parametrize("name", OPTIONAL)
def test_an_optional_package_is_a_problem_only_where_it_is_needed(installed, name):
    installed[name] = None
    for wanted, level in ((set(), "ok"), ({name}, "problem")):
        (finding,) = [finding for finding in check_optional(Plan(wanted=wanted)) if finding.area == name]
        assert finding.level == level
        assert "not installed" in finding.text
        assert ("pip install" in finding.advice) == (level == "problem")


def test_vllm_in_and_out_of_trls_range(installed, monkeypatch):
    for version, level in (("0.25.0", "ok"), ("0.5.0", "warning"), ("9.0.0", "warning")):
        installed["vllm"] = version
        monkeypatch.setattr(import_utils, "_is_package_available", lambda *_, v=version, **__: (True, v))
        (finding,) = [finding for finding in check_optional(Plan()) if finding.area == "vllm"]
        assert finding.level == level, finding
        assert version in finding.text
    monkeypatch.setattr(import_utils, "_is_package_available", lambda *_, **__: (False, None))
    (finding,) = [finding for finding in check_optional(Plan()) if finding.area == "vllm"]
    assert finding.level == "problem"


def test_the_range_is_trls_own(monkeypatch):
    """Should TRL stop to warn, this test says so before a user misses the warning."""
    monkeypatch.setattr(import_utils, "_is_package_available", lambda *_, **__: (True, "0.1.0"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        import_utils.is_vllm_available()
    assert "supports vLLM versions" in str(said[0].message)
