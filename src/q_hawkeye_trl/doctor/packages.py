"""Python, the packages and TRL's methods against what the project was written for."""

import importlib.metadata
import platform
import re
import warnings

from .finding import Finding, Plan, ok, problem, warning

PROJECT = "q-hawkeye-trl"
OPTIONAL = {
    "deepspeed": ("ZeRO", 'pip install "q-hawkeye-trl[deepspeed]"'),
    "vllm": ("use_vllm", 'pip install "q-hawkeye-trl[vllm]" into an environment of its own'),
    "bitsandbytes": ("load_in_4bit (QLoRA), load_in_8bit and 8-bit optimizers", "pip install bitsandbytes"),
    "flash-attn": (
        "attn_implementation flash_attention_2",
        "pip install flash-attn --no-build-isolation",
    ),
    "liger-kernel": ("use_liger_kernel", "pip install liger-kernel"),
}
"""Packages that a run can do without: what needs them, and how to come by them."""


def check_packages(plan: Plan) -> list[Finding]:
    """Python and the required packages against the ranges in the project's metadata."""
    try:
        metadata = importlib.metadata.metadata(PROJECT)
        requirements = importlib.metadata.requires(PROJECT) or []
    except importlib.metadata.PackageNotFoundError:
        return [problem("packages", f"{PROJECT} is not installed", "pip install -e . in its checkout")]
    python = _in_order(metadata["Requires-Python"] or "")
    required = [_in_order(requirement) for requirement in requirements if ";" not in requirement]
    found = [_python(python), *filter(None, map(_requirement, required))]
    if len(found) == 1:
        found.append(ok("packages", f"all {len(required)} required packages are in their ranges"))
    return found


def _in_order(requirement: str) -> str:
    """The lower bound first: `trl<1.17,>=1.16` is `trl>=1.16,<1.17`."""
    name = re.split("[<>=!~ ]", requirement)[0]
    return name + ",".join(sorted(requirement.removeprefix(name).split(","), reverse=True))


def _python(ranges: str) -> Finding:
    version = platform.python_version()
    fault = _fault("python", ranges, version)
    if fault is None:
        return ok("python", f"{version}, in {ranges}")
    return problem("python", f"{version} is not {ranges}", f"make an environment with a Python {ranges}")


def _requirement(requirement: str) -> Finding | None:
    name = re.split("[<>=!~ ]", requirement)[0]
    advice = f'pip install "{requirement}"'
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return problem("packages", f"{name} is missing", advice)
    fault = _fault(name, requirement.removeprefix(name), version)
    return None if fault is None else problem("packages", fault, advice)


def _fault(name: str, ranges: str, version: str) -> str | None:
    """Says how a version lies outside of its ranges, like `>=1.16,<1.17`."""
    for part in filter(None, ranges.split(",")):
        operator = part.rstrip("0123456789. ")
        bound = _numbers(part.removeprefix(operator))
        have = [*_numbers(version), *[0] * len(bound)]
        inside = {">=": have >= bound, "<": have[: len(bound)] < bound}[operator.strip()]  # setup.cfg uses no others
        if not inside:
            return f"{name} {version} is not {ranges}"
    return None


def _numbers(version: str) -> list[int]:
    """The numbers of a version: 2.15.0+cu130 is [2, 15, 0], 1.17.0rc1 is [1, 17, 0]."""
    numbers = []
    for part in version.strip().split("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return numbers


def check_trl(plan: Plan) -> list[Finding]:
    """TRL's methods, whose parameters the trainer counts on."""
    import trl

    from ..trl_compat import (
        GENERATION,
        HOOKS,
        METHOD,
        PROMPT_SHARING,
        TRL_REQUIREMENT,
        WITHOUT,
        changed_hooks,
        check_method_hooks,
    )

    try:
        check_method_hooks()
    except (ImportError, RuntimeError) as error:
        return [problem("TRL", str(error), f'pip install "{TRL_REQUIREMENT}"')]
    without = WITHOUT | {GENERATION: WITHOUT[PROMPT_SHARING]}
    changes = {part: changed_hooks(part) for part in HOOKS if part != METHOD}
    off = [warning("TRL", f"{part}: {change}", without[part]) for part, change in changes.items() if change]
    count = len({name for hooks in HOOKS.values() for name in hooks})
    return off or [ok("TRL", f"{trl.__version__}: the {count} methods that the trainer hooks are as expected")]


def check_optional(plan: Plan) -> list[Finding]:
    """Packages that only some recipes need."""
    found = []
    for name, (use, advice) in OPTIONAL.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name in plan.wanted:
                found.append(problem(name, f"not installed, and the recipe asks for {use}", advice))
            else:
                found.append(ok(name, f"not installed; for {use} only"))
            continue
        if name != "deepspeed":  # DeepSpeedProbe has more to say
            found.append(_vllm(version) if name == "vllm" else ok(name, version))
    return found


def _vllm(version: str) -> Finding:
    from trl.import_utils import is_vllm_available

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        usable = is_vllm_available()
    if not usable:
        return problem("vllm", f"{version} is installed, but can't be imported", OPTIONAL["vllm"][1])
    if said:
        return warning("vllm", str(said[0].message), OPTIONAL["vllm"][1])
    return ok("vllm", f"{version}, which TRL accepts")
