"""Uncertainty- and perception-aware GRPO for image quality assessment, on top of TRL."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import HawkeyeGRPOConfig
    from .scoring.scorer import HawkeyeScorer
    from .text import QUALITY_PROMPT, parse_score, quality_messages
    from .trainer import HawkeyeGRPOTrainer

__version__ = "0.1.0"
__all__ = [
    "QUALITY_PROMPT",
    "HawkeyeGRPOConfig",
    "HawkeyeGRPOTrainer",
    "HawkeyeScorer",
    "parse_score",
    "quality_messages",
]

_MODULE_OF = {
    "HawkeyeGRPOConfig": ".config",
    "HawkeyeGRPOTrainer": ".trainer",
    "HawkeyeScorer": ".scoring.scorer",
    "QUALITY_PROMPT": ".text",
    "parse_score": ".text",
    "quality_messages": ".text",
}


def __getattr__(name: str):
    # lazy: reading scores or labels should not wait for TRL to import
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
