"""All checks in order. One that fails itself is a problem of its own and keeps no other from running."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from .finding import Finding, Plan, problem

_NEEDED = ("torch", "transformers", "trl", "accelerate", "datasets")  # without these no other check can be imported


class Examination(NamedTuple):
    """
    What the doctor found.

    Args:
        findings (`list[Finding]`):
            Lines in the order of the checks.
        facts (`dict`):
            What a run would write down of this machine: `versions`, `platform`, `git`, `device`; with a recipe also
            `seeds`, `settings` and `changed`, with data `data`. See [`~run_facts.launch.launch_facts`].
    """

    findings: list[Finding]
    facts: dict[str, Any]


def examine(
    *,
    config: str | None = None,
    model: str | None = None,
    data: str | None = None,
    output_dir: str | None = None,
    online: bool = False,
    fingerprint: bool = False,
) -> Examination:
    """
    Checks the environment for a run. Nothing is written, and nothing is fetched unless `online`.

    Args:
        config (`str`, *optional*):
            Recipe of the run; it tells the model, the data and the folder where these are not named.
        model (`str`, *optional*):
            Model, a folder or a name on the Hub.
        data (`str`, *optional*):
            Folder of prepared data or of KonIQ-10k.
        output_dir (`str`, *optional*):
            Folder that the run writes to.
        online (`bool`, *optional*, defaults to `False`):
            Whether the config and the processor of a model may be fetched.
        fingerprint (`bool`, *optional*, defaults to `False`):
            Whether to hash the data, which reads every image.

    Returns:
        [`Examination`]
    """
    with _quiet():
        return _examine(config, fingerprint=fingerprint, model=model, data=data, output_dir=output_dir, online=online)


def _examine(config: str | None, *, fingerprint: bool, **given: Any) -> Examination:
    from .deepspeed import DeepSpeedProbe
    from .packages import check_packages

    findings: list[Finding] = []
    with _guarded("packages", findings):
        findings += check_packages(Plan())
    if any(found.text == f"{name} is missing" for found in findings for name in _NEEDED):
        return Examination(findings, _facts(findings))
    probe = DeepSpeedProbe()
    try:
        plan = _plan(findings, config, **given)
        splits = _run_checks(findings, plan, probe)
    finally:
        probe.close()
    facts = _facts(findings)
    with _guarded("facts", findings):
        facts |= _planned(plan, splits, fingerprint=fingerprint)
    return Examination(findings, facts)


def _plan(findings: list[Finding], config: str | None, **given: Any) -> Plan:
    from .recipe import find_script, read_recipe

    parsed = None
    with _guarded("recipe", findings):
        found, parsed = read_recipe(config, find_script())
        findings += found
    if parsed is None:
        return Plan(**given)
    script_args, args, model_args = parsed
    from_recipe = {
        "model": model_args.model_name_or_path,
        "data": script_args.dataset or script_args.data_dir,
        "output_dir": args.output_dir,
    }
    named = {name: value for name, value in given.items() if value is not None}
    return Plan(args=args, model_args=model_args, script_args=script_args, **from_recipe | named)


def _run_checks(findings: list[Finding], plan: Plan, probe: Any) -> dict[str, Any]:
    from . import gpu, packages, system
    from .data import check_data
    from .disk import check_disk
    from .model import check_model

    simple: tuple[tuple[str, Callable[[Plan], list[Finding]]], ...] = (
        ("TRL", packages.check_trl),
        ("packages", packages.check_optional),
        ("GPU", gpu.check_gpu),
        ("attention", gpu.check_attention),
        ("DeepSpeed", probe.check),
        ("accelerate", system.check_accelerate),
        ("cores", system.check_cores),
        ("/dev/shm", system.check_shared_memory),
        ("Hugging Face", system.check_hub),
    )
    for area, check in simple:
        with _guarded(area, findings):
            findings += check(plan)
    size = None
    splits: dict[str, Any] = {}
    with _guarded("model", findings):
        found, size = check_model(plan)
        findings += found
    with _guarded("disk", findings):
        findings += check_disk(plan, size)
    with _guarded("data", findings):
        found, splits = check_data(plan)
        findings += found
    return splits


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the libraries' warnings, logs and progress bars from between the lines: what matters is a finding."""
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
    """Makes a problem of an error that a check did not foresee."""
    try:
        yield
    except Exception as error:  # whatever a broken environment raises on import
        text = f"the check fails itself: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        advice = "a broken installation is the usual reason: make a fresh environment (CONTRIBUTING.md)"
        findings.append(problem(area, text, advice))


def _facts(findings: list[Finding]) -> dict[str, Any]:
    from ..run_facts.machine import device_facts, git_state, package_versions, platform_facts

    facts: dict[str, Any] = {"versions": package_versions(), "platform": platform_facts(), "git": git_state()}
    with _guarded("facts", findings):
        facts["device"] = device_facts()
    return facts


def _planned(plan: Plan, splits: dict[str, Any], *, fingerprint: bool) -> dict[str, Any]:
    from ..run_facts.fingerprint import describe_data
    from ..run_facts.settings import changed_settings, settings_of

    facts: dict[str, Any] = {}
    if plan.args is not None:
        every = (plan.args, plan.script_args, plan.model_args)
        facts["seeds"] = {name: getattr(plan.args, name) for name in ("seed", "data_seed", "degradation_seed")}
        facts["settings"] = {type(each).__name__: settings_of(each) for each in every}
        facts["changed"] = {type(each).__name__: changed_settings(each) for each in every}
    if fingerprint:
        facts["data"] = {name or "all": describe_data(rows) for name, rows in splits.items()}
    return facts
