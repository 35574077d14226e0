"""Checks of the environment before a run; every finding that is not ok carries advice."""

import subprocess
from dataclasses import dataclass, field
from typing import Any, NamedTuple

OK, WARNING, PROBLEM = LEVELS = ("ok", "warning", "problem")
"""A run can be slow or go wrong with a warning; it fails with a problem."""


class Finding(NamedTuple):
    """One line of the report."""

    area: str
    level: str
    text: str
    advice: str = ""


def ok(area: str, text: str) -> Finding:
    return Finding(area, OK, text)


def warning(area: str, text: str, advice: str) -> Finding:
    return Finding(area, WARNING, text, advice)


def problem(area: str, text: str, advice: str) -> Finding:
    return Finding(area, PROBLEM, text, advice)


@dataclass
class Plan:
    """
    The run to check for, and what the checks learn about it for later ones.

    Without a recipe `args`, `model_args` and `script_args` are `None`. No `model` is the bundled toy policy; no `data`
    or `output_dir` skips their checks.
    """

    config: str | None = None
    model: str | None = None
    data: str | None = None
    output_dir: str | None = None
    online: bool = False
    args: Any = None
    model_args: Any = None
    script_args: Any = None
    deepspeed: subprocess.Popen | None = None  # imports it while the other checks run
    size: Any = None  # `ModelSize`, once the model is known
    splits: dict[str, Any] = field(default_factory=dict)

    @property
    def optimizer(self) -> str:
        return "adamw_torch" if self.args is None else str(getattr(self.args.optim, "value", self.args.optim))

    @property
    def needs(self) -> set[str]:
        """Optional packages that the recipe needs."""
        if self.args is None:
            return set()
        quantized = self.model_args is not None and (self.model_args.load_in_4bit or self.model_args.load_in_8bit)
        needed = {
            "vllm": self.args.use_vllm,
            "bitsandbytes": quantized or "8bit" in self.optimizer,
            "deepspeed": self.args.deepspeed,
            "liger-kernel": self.args.use_liger_kernel,
        }
        return {name for name, is_needed in needed.items() if is_needed}

    def model_option(self, name: str) -> Any:
        """An option for loading the model, such as `dtype`: from `model_init_kwargs` first."""
        given = getattr(self.args, "model_init_kwargs", None) or {}
        return given.get(name) or getattr(self.model_args, name, None)
