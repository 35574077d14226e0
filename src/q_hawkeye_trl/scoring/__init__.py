"""Scores of images by a trained policy."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .metric import ImageQuality
    from .scorer import HawkeyeScorer

__all__ = ["HawkeyeScorer", "ImageQuality"]

_MODULE_OF = {"HawkeyeScorer": ".scorer", "ImageQuality": ".metric"}


def __getattr__(name: str):
    # lazy: tables and pages of scores need no model
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
