"""What `q-hawkeye pair` is asked to do: everything that a pair's pixels and verdict depend on."""

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import features

from ..data.degradations import RELEASE_PRESETS, degradation_kinds, expand_degradations
from .judge import JUDGE_PROMPT, JudgeSettings

MILD_SSIM = 0.97
MILD_PSNR = 30.0
REJECTED = ("drop", "strengthen")


@dataclass(frozen=True)
class PairSettings:
    """
    Settings of a set of pairs.

    Args:
        degradations (`Sequence[str]`, *optional*, defaults to the release's four):
            Degradations of which each image gets one, as [`~data.degradations.expand_degradations`] reads them.
        second (`Sequence[str]`, *optional*, defaults to the release's four at its second strength):
            Single degradations of which a pair that came out too mild gets one more, of another kind. Empty: such
            pairs are only marked.
        seed (`int`, *optional*, defaults to `0`):
            Seed of all draws, at least 0.
        mild_ssim (`float`, *optional*, defaults to `0.97`), mild_psnr (`float`, *optional*, defaults to `30.0`):
            A pair is too mild when its SSIM *and* its PSNR are at least these.
        drop_mild (`bool`, *optional*, defaults to `False`):
            Whether pairs that are still too mild in the end lose their degraded view.
        splits (`Sequence[str]`, *optional*):
            Splits that get pairs; the others keep an empty column. By default all.
        limit (`int`, *optional*):
            Only the first so many rows of each split are taken.
        judge ([`~pairs.judge.JudgeSettings`], *optional*):
            Who looks at the pairs that are not too mild by distance. By default nobody.
        decisions (`str` or `os.PathLike`, *optional*):
            File of people's decisions to apply.
        rejected (`str`, *optional*, defaults to `"drop"`):
            What happens to a pair that people rejected: `"drop"` takes its degraded view away, `"strengthen"` adds a
            second degradation (a pair that has two already is dropped).
    """

    degradations: Sequence[str] = tuple(RELEASE_PRESETS)
    second: Sequence[str] = tuple(f"{kind}@strong" for kind in RELEASE_PRESETS)
    seed: int = 0
    mild_ssim: float = MILD_SSIM
    mild_psnr: float = MILD_PSNR
    drop_mild: bool = False
    splits: Sequence[str] | None = None
    limit: int | None = None
    judge: JudgeSettings | None = None
    decisions: str | os.PathLike | None = None
    rejected: str = "drop"

    def __post_init__(self):
        object.__setattr__(self, "degradations", tuple(expand_degradations(self.degradations)))
        second = tuple(expand_degradations(self.second)) if self.second else ()
        object.__setattr__(self, "second", second)
        self._check_kinds()
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be at least 0.")
        if math.isnan(self.mild_ssim) or math.isnan(self.mild_psnr):
            raise ValueError("mild_ssim and mild_psnr must be numbers; above 1 and inf no pair counts as too mild.")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}; it must be at least 1.")
        if self.rejected not in REJECTED:
            raise ValueError(f"rejected is {self.rejected!r}; set it to one of: {', '.join(REJECTED)}.")
        if self.decisions is not None and not Path(self.decisions).is_file():
            raise FileNotFoundError(f"There is no file of decisions {self.decisions}: correct the path.")

    def _check_kinds(self) -> None:
        combined = [name for name in self.second if len(degradation_kinds(name)) > 1]
        if combined:
            raise ValueError(f"{combined[0]!r} is a combination: a pair is strengthened by a single degradation.")
        kinds = {degradation_kinds(name)[0] for name in self.second}
        for name in self.degradations if self.second else ():
            if set(degradation_kinds(name)) >= kinds:
                raise ValueError(
                    f"{name!r} can't be strengthened by {', '.join(self.second)}: name a second degradation of "
                    "another kind."
                )
        used = {kind for name in (*self.degradations, *self.second) for kind in degradation_kinds(name)}
        if "jpeg2000" in used and not features.check("jpg_2000"):
            raise ValueError("This Pillow cannot write JPEG 2000: install one built with OpenJPEG, or drop jpeg2000.")

    def identity(self) -> dict:
        """
        Returns what the pairs depend on, as JSON: a run goes on with a folder whose settings equal these. The judge
        counts by its name and not by its address.
        """
        judge = None
        if self.judge is not None:
            prompt = hashlib.blake2b(JUDGE_PROMPT.encode(), digest_size=8).hexdigest()
            judge = {"model": self.judge.model, "endpoint": self.judge.base_url is not None, "prompt": prompt}
        decisions = None
        if self.decisions is not None:
            decisions = hashlib.blake2b(Path(self.decisions).read_bytes(), digest_size=16).hexdigest()
        return {
            "degradations": list(self.degradations),
            "second": list(self.second),
            "seed": self.seed,
            "mild_ssim": _finite(self.mild_ssim),
            "mild_psnr": _finite(self.mild_psnr),
            "drop_mild": self.drop_mild,
            "splits": None if self.splits is None else list(self.splits),
            "limit": self.limit,
            "judge": judge,
            "decisions": decisions,
            "rejected": self.rejected if decisions is not None else None,
        }


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
