"""Python, the installed packages, TRL's hooks and DeepSpeed."""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from . import Finding, Plan, ok, problem, warning

PROJECT = "q-hawkeye-trl"
OPTIONAL = {
    "deepspeed": ("ZeRO", 'pip install "q-hawkeye-trl[deepspeed]"'),
    "vllm": ("use_vllm", 'pip install "q-hawkeye-trl[vllm]" in a separate environment'),
    "bitsandbytes": ("load_in_4bit (QLoRA), load_in_8bit and 8-bit optimizers", "pip install bitsandbytes"),
    "flash-attn": ("attn_implementation flash_attention_2", "pip install flash-attn --no-build-isolation"),
    "liger-kernel": ("use_liger_kernel", "pip install liger-kernel"),
}
"""What needs an optional package, and how to install it."""

_IMPORT_SECONDS = 60
_IMPORT_DEEPSPEED = """
import json, sys
import torch
from torch.utils.cpp_extension import CUDA_HOME
import deepspeed
from deepspeed.accelerator import get_accelerator
accelerator = get_accelerator()
builders = {name: accelerator.create_op_builder(name) for name in ("CPUAdamBuilder", "FusedAdamBuilder")}
able = {name: builder is not None and bool(builder.is_compatible(verbose=False)) for name, builder in builders.items()}
print("\\n" + json.dumps({
    "accelerator": accelerator._name, "cuda_home": CUDA_HOME, "cuda": torch.version.cuda,
    "gpus": torch.cuda.device_count(), "able": able,
}))
"""


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_packages(plan: Plan) -> Iterator[Finding]:
    """Compare Python and the required packages with the ranges in the project's metadata."""
    try:
        metadata = importlib.metadata.metadata(PROJECT)
    except importlib.metadata.PackageNotFoundError:
        yield problem("packages", f"{PROJECT} is not installed", "pip install -e . in its checkout")
        return
    python, allowed = platform.python_version(), SpecifierSet(metadata["Requires-Python"] or "")
    if python in allowed:
        yield ok("python", f"{python}, in {_in_order(allowed)}")
    else:
        advice = f"create an environment with Python {_in_order(allowed)}"
        yield problem("python", f"{python} is not {_in_order(allowed)}", advice)
    every = map(Requirement, importlib.metadata.requires(PROJECT) or [])
    required = {each.name: each.specifier for each in every if each.marker is None}
    outside = False
    for name, specifier in required.items():
        version, wanted = _version(name), _in_order(specifier)
        if version is None or not specifier.contains(version, prereleases=True):
            outside = True
            text = f"{name} is missing" if version is None else f"{name} {version} is not {wanted}"
            yield problem("packages", text, f'pip install "{name}{wanted}"')
    if not outside:
        yield ok("packages", f"all {len(required)} required packages are in their ranges")


def _in_order(specifier: SpecifierSet) -> str:
    """The lower bound first: `>=5.23,<6`."""
    return ",".join(sorted(map(str, specifier), reverse=True))


def check_trl(plan: Plan) -> Iterator[Finding]:
    """Check that TRL's methods have the parameters that the trainer expects."""
    import trl

    from ..trl_compat import HOOKS, METHOD, TRL_REQUIREMENT, WITHOUT, changed_hooks, check_method_hooks

    try:
        check_method_hooks()
    except (ImportError, RuntimeError) as error:
        yield problem("TRL", str(error), f'pip install "{TRL_REQUIREMENT}"')
        return
    changes = {part: changed_hooks(part) for part in HOOKS if part != METHOD}
    for part, change in changes.items():
        if change:
            yield warning("TRL", f"{part} is off: {change}", WITHOUT[part])
    if not any(changes.values()):
        count = len({name for hooks in HOOKS.values() for name in hooks})
        yield ok("TRL", f"{trl.__version__}: the {count} methods that the trainer hooks are as expected")


def check_optional(plan: Plan) -> Iterator[Finding]:
    """Look for the packages that only some recipes need."""
    for name, (use, advice) in OPTIONAL.items():
        version = _version(name)
        if version is None and name in plan.needs:
            yield problem(name, f"not installed, and the recipe asks for {use}", advice)
        elif version is None:
            yield ok(name, f"not installed; only for {use}")
        elif name == "vllm":
            yield _check_vllm(version)
        elif name != "deepspeed":  # see check_deepspeed
            yield ok(name, version)


def _check_vllm(version: str) -> Finding:
    from trl.import_utils import is_vllm_available

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        usable = is_vllm_available()
    if not usable:
        return problem("vllm", f"{version} is installed, but can't be imported", OPTIONAL["vllm"][1])
    if caught:
        return warning("vllm", str(caught[0].message), OPTIONAL["vllm"][1])
    return ok("vllm", f"{version}, which TRL accepts")


def import_deepspeed() -> subprocess.Popen | None:
    """Start a process that imports DeepSpeed: the import takes seconds and can end the process."""
    if _version("deepspeed") is None:
        return None
    command = [sys.executable, "-c", _IMPORT_DEEPSPEED]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def check_deepspeed(plan: Plan) -> Iterator[Finding]:
    """Report whether DeepSpeed can be imported, and can build its operators."""
    if plan.deepspeed is None:
        return
    try:
        out, errors = plan.deepspeed.communicate(timeout=_IMPORT_SECONDS)
    except subprocess.TimeoutExpired:
        advice = "run `python -c 'import deepspeed'`; a slow network folder is a common reason"
        yield warning("DeepSpeed", f"its import takes more than {_IMPORT_SECONDS} seconds", advice)
        return
    if plan.deepspeed.returncode != 0:
        last = (errors.strip().splitlines() or [f"exit status {plan.deepspeed.returncode}"])[-1]
        advice = "install a CUDA toolkit and set CUDA_HOME, or set DS_ACCELERATOR=cpu, or pip uninstall deepspeed"
        make = problem if "deepspeed" in plan.needs else warning
        yield make("DeepSpeed", f"its import fails: {last[:300]}", advice)
        return
    facts = json.loads(out.splitlines()[-1])
    chosen = os.environ.get("DS_ACCELERATOR")
    source = f" (DS_ACCELERATOR={chosen})" if chosen else ""
    if facts["gpus"] and facts["accelerator"] != "cuda":
        text = f"uses the {facts['accelerator']} although there are GPUs{source}"
        yield warning("DeepSpeed", text, "unset DS_ACCELERATOR, unless the CPU is what you want")
    else:
        yield ok("DeepSpeed", f"{_version('deepspeed')} imports, for {facts['accelerator']}{source}")
    yield _check_operators(facts)


def _check_operators(facts: dict) -> Finding:
    area, on_cuda = "DeepSpeed operators", facts["accelerator"] == "cuda"
    lacking = [tool for tool in ("c++", "ninja") if not shutil.which(tool)]
    if on_cuda and not (shutil.which("nvcc") or facts["cuda_home"]):
        lacking.append("nvcc")
    if lacking:
        text = f"can't be built without {' and '.join(lacking)}: ZeRO with CPU offload (CPUAdam) needs them"
        advice = "install a C++ compiler, ninja and the CUDA toolkit of torch's version; set CUDA_HOME to the toolkit"
        return warning(area, text, advice)
    unable = [name.removesuffix("Builder") for name, able in facts["able"].items() if not able]
    if unable:
        advice = "run `ds_report` for the reasons; ZeRO without offload and with torch's AdamW does not need them"
        return warning(area, f"{' and '.join(unable)} can't be built here", advice)
    toolkit = _nvcc_version() if on_cuda else None
    if toolkit and facts["cuda"] and toolkit.split(".")[0] != facts["cuda"].split(".")[0]:
        text = f"nvcc is of CUDA {toolkit}, torch of {facts['cuda']}: DeepSpeed refuses to build"
        return warning(area, text, "put the toolkit of torch's version first in PATH and CUDA_HOME")
    return ok(area, "CPUAdam and FusedAdam can be built; the first use builds them")


def _nvcc_version() -> str | None:
    try:
        output = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"release ([\d.]+)", output)
    return found and found[1]
