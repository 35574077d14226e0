"""What a check of the environment finds, and what a run that is planned asks of it."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

OK, WARNING, PROBLEM = LEVELS = ("ok", "warning", "problem")


class Finding(NamedTuple):
    """
    One line of the report.

    Args:
        area (`str`):
            What was looked at, in a word or two.
        level (`str`):
            `"ok"`, `"warning"` (a run can go wrong or be slow) or `"problem"` (it fails).
        text (`str`):
            What was found.
        advice (`str`, *optional*, defaults to `""`):
            What to do; empty only where all is well.
    """

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
    The run that the environment is checked for. What is not known is as a run without a recipe has it.

    Args:
        model (`str`, *optional*):
            Model, a folder or a name on the Hub; `None` is the bundled toy policy.
        data (`str`, *optional*):
            Folder of prepared data or of KonIQ-10k; `None` where none is to be checked.
        output_dir (`str`, *optional*):
            Folder that the run writes to; `None` where none is to be checked.
        args ([`HawkeyeGRPOConfig`]), model_args ([`~trl.ModelConfig`]), script_args (*optional*):
            What the training script makes of the recipe; `None` without a recipe.
        online (`bool`, *optional*, defaults to `False`):
            Whether a model's config and processor may be fetched from the Hub.
    """

    model: str | None = None
    data: str | None = None
    output_dir: str | None = None
    args: Any = None
    model_args: Any = None
    script_args: Any = None
    online: bool = False
    wanted: set[str] = field(default_factory=set)

    def __post_init__(self):
        if self.args is not None:
            self.wanted |= {name for name, needed in self._needs() if needed}

    def _needs(self) -> list[tuple[str, bool]]:
        quantized = self.model_args is not None and (self.model_args.load_in_4bit or self.model_args.load_in_8bit)
        return [
            ("vllm", self.args.use_vllm),
            ("bitsandbytes", quantized or "8bit" in str(getattr(self.args.optim, "value", self.args.optim))),
            ("deepspeed", bool(self.args.deepspeed)),
            ("liger-kernel", self.args.use_liger_kernel),
        ]

    @property
    def attention(self) -> str | None:
        """Attention implementation that the recipe names."""
        given = getattr(self.args, "model_init_kwargs", None) or {}
        return given.get("attn_implementation") or getattr(self.model_args, "attn_implementation", None)

    @property
    def uses_cpu(self) -> bool:
        """Whether the recipe runs on the CPU whatever the machine has."""
        return self.args is not None and self.args.use_cpu
