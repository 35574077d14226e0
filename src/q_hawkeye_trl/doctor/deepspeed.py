"""DeepSpeed: does it import, and can it build its operators? Asked in a process beside the other checks."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys

from .finding import Finding, Plan, ok, problem, warning

_SECONDS = 60
_PROBE = """
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


class DeepSpeedProbe:
    """
    Imports DeepSpeed in a process of its own: the import can end the process, and takes seconds that the other checks
    use. Nothing is started where it is not installed.
    """

    def __init__(self):
        self.process: subprocess.Popen | None = None
        try:
            self.version = importlib.metadata.version("deepspeed")
        except importlib.metadata.PackageNotFoundError:
            return  # check_optional says so
        command = [sys.executable, "-c", _PROBE]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def close(self) -> None:
        """Ends the process, if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.communicate()

    def check(self, plan: Plan) -> list[Finding]:
        """What the process found out."""
        if self.process is None:
            return []
        needed = "deepspeed" in plan.wanted
        try:
            out, errors = self.process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            advice = "run `python -c 'import deepspeed'` by hand; a slow network folder is a common reason"
            return [warning("DeepSpeed", f"its import takes more than {_SECONDS} seconds", advice)]
        if self.process.returncode != 0:
            last = (errors.strip().splitlines() or [f"exit status {self.process.returncode}"])[-1]
            advice = "install a CUDA toolkit and set CUDA_HOME, or set DS_ACCELERATOR=cpu, or pip uninstall deepspeed"
            make = problem if needed else warning
            return [make("DeepSpeed", f"its import fails: {last[:300]}", advice)]
        return _operators(json.loads(out.splitlines()[-1]), self.version)


def _operators(facts: dict, version: str) -> list[Finding]:
    found = [ok("DeepSpeed", f"{version} imports, for {facts['accelerator']}{_chosen()}")]
    if facts["gpus"] and facts["accelerator"] != "cuda":
        advice = "unset DS_ACCELERATOR, unless the CPU is what you want"
        found = [warning("DeepSpeed", f"works for {facts['accelerator']} although there are GPUs{_chosen()}", advice)]
    lacking = [tool for tool in ("c++", "ninja") if not shutil.which(tool)]
    if facts["accelerator"] == "cuda" and not (shutil.which("nvcc") or facts["cuda_home"]):
        lacking.append("nvcc")
    if lacking:
        advice = "install a C++ compiler, ninja and the CUDA toolkit of torch's version; set CUDA_HOME to the toolkit"
        text = f"can't be built without {' and '.join(lacking)}: ZeRO with CPU offload (CPUAdam) needs them"
        return [*found, warning("DeepSpeed operators", text, advice)]
    unable = [name.removesuffix("Builder") for name, able in facts["able"].items() if not able]
    if unable:
        advice = "run `ds_report` for the reasons; ZeRO without offload and with torch's AdamW does without them"
        return [*found, warning("DeepSpeed operators", f"{' and '.join(unable)} can't be built here", advice)]
    toolkit = _toolkit() if facts["accelerator"] == "cuda" else None
    if toolkit and facts["cuda"] and toolkit.split(".")[0] != facts["cuda"].split(".")[0]:
        text = f"nvcc is of CUDA {toolkit}, torch of {facts['cuda']}: DeepSpeed refuses to build"
        advice = "put the toolkit of torch's version first in PATH and CUDA_HOME"
        return [*found, warning("DeepSpeed operators", text, advice)]
    return [*found, ok("DeepSpeed operators", "CPUAdam and FusedAdam can be built; the first use does it")]


def _chosen() -> str:
    return f" (DS_ACCELERATOR={os.environ['DS_ACCELERATOR']})" if os.environ.get("DS_ACCELERATOR") else ""


def _toolkit() -> str | None:
    """Version of nvcc, like 13.0."""
    try:
        said = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.split("release ")[1].split(",")[0] if "release " in said else None
