"""Settings of `q-hawkeye pair`: everything that the pixels and the verdict of a pair depend on."""

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import features

from ..data.degradations import RELEASE_PRESETS, degradation_kinds, expand_degradations
from .judge import JUDGE_PROMPT, JudgeSettings

REJECTED = ("drop", "strengthen")


@dataclass(frozen=True)
class PairSettings:
    """
    Settings of a folder of pairs.

    Args:
        degradations (`Sequence[str]`, *optional*, defaults to the release's four):
            Degradations to draw from, one per image, in the notation of
            [`~data.degradations.expand_degradations`].
        second (`Sequence[str]`, *optional*, defaults to the release's four at `@strong`):
            Single degradations for pairs that are too mild: one of another kind is added. If empty, such pairs are
            only marked.
        seed (`int`, *optional*, defaults to `0`):
            Seed of all draws, at least 0.
        mild_ssim (`float`, *optional*, defaults to `0.97`), mild_psnr (`float`, *optional*, defaults to `30.0`):
            A pair is too mild if its SSIM *and* its PSNR (in dB) are at least these.
        drop_mild (`bool`, *optional*, defaults to `False`):
            Whether to drop views that stay too mild.
        splits (`Sequence[str]`, *optional*):
            Splits that get pairs. By default all.
        limit (`int`, *optional*):
            Maximum number of rows of each split. By default all.
        judge ([`~pairs.judge.JudgeSettings`], *optional*):
            Vision-language model that judges the pairs that are not too mild by distance. By default none.
        decisions (`str` or `os.PathLike`, *optional*):
            File of people's decisions to apply.
        rejected (`str`, *optional*, defaults to `"drop"`):
            What happens to a rejected pair: `"drop"` removes its view, `"strengthen"` adds a second degradation, or
            removes the view if it has two already.
    """

    degradations: Sequence[str] = tuple(RELEASE_PRESETS)
    second: Sequence[str] = tuple(f"{kind}@strong" for kind in RELEASE_PRESETS)
    seed: int = 0
    mild_ssim: float = 0.97
    mild_psnr: float = 30.0
    drop_mild: bool = False
    splits: Sequence[str] | None = None
    limit: int | None = None
    judge: JudgeSettings | None = None
    decisions: str | os.PathLike | None = None
    rejected: str = "drop"

    def __post_init__(self):
        object.__setattr__(self, "degradations", tuple(expand_degradations(self.degradations)))
        object.__setattr__(self, "second", tuple(expand_degradations(self.second)) if self.second else ())
        self._check_kinds()
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be at least 0.")
        if math.isnan(self.mild_ssim) or math.isnan(self.mild_psnr):
            raise ValueError("mild_ssim or mild_psnr is NaN; set a number, or `inf` so that no pair is too mild.")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}; it must be at least 1.")
        if self.rejected not in REJECTED:
            raise ValueError(f"rejected is {self.rejected!r}; set it to one of: {', '.join(REJECTED)}.")
        if self.decisions is not None and not Path(self.decisions).is_file():
            raise FileNotFoundError(f"There is no file of decisions {self.decisions}: correct the path.")

    def _check_kinds(self) -> None:
        combined = [name for name in self.second if len(degradation_kinds(name)) > 1]
        if combined:
            raise ValueError(f"second has the combination {combined[0]!r}; name single degradations.")
        kinds = {degradation_kinds(name)[0] for name in self.second}
        for name in self.degradations if self.second else ():
            if set(degradation_kinds(name)) >= kinds:
                raise ValueError(f"second has no other kind than {name!r} itself; add a degradation of another kind.")
        used = {kind for name in (*self.degradations, *self.second) for kind in degradation_kinds(name)}
        if "jpeg2000" in used and not features.check("jpg_2000"):
            raise ValueError("This Pillow can't write JPEG 2000: install one built with OpenJPEG, or drop jpeg2000.")

    def identity(self) -> dict[str, Any]:
        """Return what the pairs depend on, as JSON: of a judge its name, not its address."""
        described: dict[str, Any] = {
            key: list(value) if isinstance(value, tuple | list) else value for key, value in asdict(self).items()
        }
        for name in ("mild_ssim", "mild_psnr"):
            if not math.isfinite(described[name]):
                described[name] = str(described[name])
        if self.judge is not None:
            prompt = hashlib.blake2b(JUDGE_PROMPT.encode(), digest_size=8).hexdigest()
            described["judge"] = {
                "model": self.judge.model,
                "endpoint": self.judge.base_url is not None,
                "prompt": prompt,
            }
        if self.decisions is None:
            described["rejected"] = None
        else:
            described["decisions"] = hashlib.blake2b(Path(self.decisions).read_bytes(), digest_size=16).hexdigest()
        return described
