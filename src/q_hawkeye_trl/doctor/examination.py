"""Runs all checks in order; one that raises is reported as a problem and does not stop the others."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from . import Finding, Plan, problem

_REQUIRED = ("torch", "transformers", "trl", "accelerate", "datasets")  # without these no other check can be imported


class Examination(NamedTuple):
    """
    Findings in the order of the checks, and the facts that a run would record.

    The facts are `versions`, `platform`, `git`, `device`; with a recipe also `seeds`, `settings` and `changed`; with
    `fingerprint` also `data`.
    """

    findings: list[Finding]
    facts: dict[str, Any]


def examine(plan: Plan, *, fingerprint: bool = False) -> Examination:
    """Check the environment for a run; nothing is written, and nothing is downloaded unless the plan is online."""
    findings: list[Finding] = []
    facts: dict[str, Any] = {}
    with _quiet():
        with _guarded("packages", findings):
            from .environment import check_packages

            findings += check_packages(plan)
            if not {f"{name} is missing" for name in _REQUIRED} & {finding.text for finding in findings}:
                _run_checks(plan, findings)
        with _guarded("facts", findings):
            _add_facts(facts, plan, fingerprint=fingerprint)
    return Examination(findings, facts)


def _run_checks(plan: Plan, findings: list[Finding]) -> None:
    from . import environment, hardware, planned_run, training_data

    plan.deepspeed = environment.import_deepspeed()
    try:
        for area, check in (
            ("recipe", planned_run.check_recipe),
            ("TRL", environment.check_trl),
            ("packages", environment.check_optional),
            ("GPU", hardware.check_gpu),
            ("attention", hardware.check_attention),
            ("DeepSpeed", environment.check_deepspeed),
            ("accelerate", hardware.check_accelerate),
            ("cores", hardware.check_cores),
            ("/dev/shm", hardware.check_shared_memory),
            ("Hugging Face", hardware.check_hub),
            ("model", planned_run.check_model),
            ("disk", planned_run.check_disk),
            ("data", training_data.check_data),
        ):
            with _guarded(area, findings):
                findings.extend(check(plan))  # keeps what a check finds before it raises
    finally:
        if plan.deepspeed is not None and plan.deepspeed.poll() is None:
            plan.deepspeed.kill()
            plan.deepspeed.communicate()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the libraries' warnings and logs, which would mix with the report."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _guarded(area: str, findings: list[Finding]) -> Iterator[None]:
    """Turn an unexpected error of a check into a problem."""
    try:
        yield
    except Exception as error:  # a broken environment can raise anything on import
        text = f"the check itself fails: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        advice = "usually an installation is broken: create a fresh environment (CONTRIBUTING.md)"
        findings.append(problem(area, text, advice))


def _add_facts(facts: dict[str, Any], plan: Plan, *, fingerprint: bool) -> None:
    from ..run_facts.machine import device_facts, git_state, package_versions, platform_facts
    from ..run_facts.settings import changed_settings, settings_of

    facts |= {"versions": package_versions(), "platform": platform_facts(), "git": git_state()}
    facts["device"] = device_facts()
    if plan.args is not None:
        every = (plan.args, plan.script_args, plan.model_args)
        facts["seeds"] = {name: getattr(plan.args, name) for name in ("seed", "data_seed", "degradation_seed")}
        facts["settings"] = {type(each).__name__: settings_of(each) for each in every}
        facts["changed"] = {type(each).__name__: changed_settings(each) for each in every}
    if fingerprint:
        from ..run_facts.fingerprint import describe_data

        facts["data"] = {name or "all": describe_data(rows) for name, rows in plan.splits.items()}
