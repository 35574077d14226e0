"""`HawkeyeGRPOConfig`: TRL's `GRPOConfig` with the question and the two Q-Hawkeye terms."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from trl import GRPOConfig

from .data.degradations import parse_degradation
from .question import Question

RELEASE_DEGRADATIONS = ("gaussian_noise", "gaussian_blur", "jpeg", "darken")

UncertaintyWeighting = Literal["exponential", "linear", "reciprocal"]
UncertaintyUnparsed = Literal["penalize", "exclude"]
GammaSchedule = Literal["cosine", "linear", "constant"]
PerceptionGradient = Literal["both", "original"]
EntropyEstimator = Literal["exact", "sampled"]
SharedPrefix = Literal["off", "auto", "on"]

_CHOICES = {
    "uncertainty_weighting": UncertaintyWeighting,
    "uncertainty_unparsed": UncertaintyUnparsed,
    "perception_gamma_schedule": GammaSchedule,
    "perception_gradient": PerceptionGradient,
    "entropy_estimator": EntropyEstimator,
    "shared_prefix": SharedPrefix,
}
_NON_NEGATIVE = (
    "uncertainty_alpha",
    "perception_gamma",
    "perception_gamma_zero_epoch",
    "entropy_original_coef",
    "entropy_degraded_coef",
)


@dataclass
class HawkeyeGRPOConfig(GRPOConfig):
    r"""
    Configuration class for the [`HawkeyeGRPOTrainer`].

    This class includes only the parameters that are specific to Q-Hawkeye. For the others, which keep TRL's defaults,
    see [`~trl.GRPOConfig`]. The defaults are those of the authors' release (docs/method.md maps its flags to these
    fields). With `uncertainty_alpha`, `perception_gamma`, `entropy_original_coef` and `entropy_degraded_coef` at 0
    the trainer is stock GRPO: bitwise with `shared_prefix` off, to float rounding if the rollouts share their prompt.

    Parameters:
        > Parameters that control the question, which is saved with the model (`quality_task.json`)

        prompt (`str`, *optional*):
            Question to ask for every row, in place of the `prompt` column. By default the rows bring their own.
        score_min (`float`, *optional*, defaults to `1.0`):
            Lower end of the scale on which the policy answers and `mos` is given.
        score_max (`float`, *optional*, defaults to `5.0`):
            Upper end of that scale.
        score_parser (`str`, *optional*, defaults to `"number"`):
            How the score of an answer is read: `"number"` is `<answer>3.75</answer>`, `"boxed"` is `\\boxed{80}`,
            `"module:function"` is a function from text to `float` or `None`.
        max_pixels (`int`, *optional*):
            Largest image, in pixels, that the model sees; larger ones are downscaled. It applies to the processor that
            the trainer loads; a `processing_class` of your own needs the same limit.

        > Parameters that control the uncertainty weighting (Q-Hawkeye, uncertainty-aware dynamic optimization)

        uncertainty_alpha (`float`, *optional*, defaults to `0.2`):
            Strength of the reweighting of the advantages by the variance of a group's scores. `0` turns it off.
        uncertainty_weighting (`str`, *optional*, defaults to `"exponential"`):
            Shape of the weight of a group with uncertainty `u` in [0, 1]: `"exponential"` is `exp(-alpha u)`,
            `"linear"` is `1 - alpha u` (alpha at most 1), `"reciprocal"` is `1 / (1 + alpha u)`.
        uncertainty_unparsed (`str`, *optional*, defaults to `"penalize"`):
            How a rollout without a readable score counts: `"penalize"` as fully uncertain, `"exclude"` (the release)
            not at all, which makes a group without scores the most certain one.
        normalize_uncertainty_weights (`bool`, *optional*, defaults to `False`):
            Whether to rescale the weights to mean 1 over the groups of a generation batch (all processes), so that
            alpha changes the emphasis among images and not the learning rate.

        > Parameters that control the perception loss (Q-Hawkeye, perception-aware optimization; PAPO, 2507.06448)

        perception_gamma (`float`, *optional*, defaults to `1e-4`):
            Coefficient of the KL divergence between the policy on the original and on the degraded image, which is
            maximised. `0` turns it off.
        perception_gamma_schedule (`str`, *optional*, defaults to `"cosine"`):
            How gamma decays with the (fractional) epoch: `"cosine"` and `"linear"` reach exactly 0 at
            `perception_gamma_zero_epoch` and stay there, `"constant"` does not decay.
        perception_gamma_zero_epoch (`float`, *optional*, defaults to `5.0`):
            Epoch at which gamma is 0. `0` keeps it constant.
        perception_kl_clip (`float`, *optional*, defaults to `10.0`):
            Upper bound of the KL estimate of one token.
        perception_gradient (`str`, *optional*, defaults to `"both"`):
            Branches with a gradient of the perception terms: `"both"`, or `"original"` (the release, whose degraded
            branch has no gradient).
        entropy_estimator (`str`, *optional*, defaults to `"exact"`):
            `"exact"` is the entropy of the token distribution, `"sampled"` (the release, PAPO) is minus the
            log-probability of the sampled token. Its gradient on the degraded branch opposes the KL, so it can't be
            combined with `entropy_degraded_coef` above 0.
        entropy_original_coef (`float`, *optional*, defaults to `1e-3`):
            Coefficient of the entropy on the original image, which is minimised. `0` turns it off.
        entropy_degraded_coef (`float`, *optional*, defaults to `1e-3`):
            Coefficient of the entropy on the degraded image, which is minimised. `0` turns it off.

        > Parameters that control the degraded view

        degradations (`list[str]`, *optional*, defaults to the release's four):
            Kinds from which the degraded view of an image is drawn if the dataset has no `degraded_image` or
            `degraded_images` column: `"gaussian_noise"`, `"gaussian_blur"`, `"jpeg"` and `"darken"` have the release's
            strength, `"kind@severity"` with a severity from 1 to 5 names any kind of
            `q_hawkeye_trl.data.degradations`, `"gaussian_noise@3+jpeg@2"` applies one after the other.
        degradation_seed (`int`, *optional*, defaults to `0`):
            Seed of the draw. A view depends on this seed, the image's pixels and the epoch alone.

        > Parameters that control the speed

        shared_prefix (`str`, *optional*, defaults to `"auto"`):
            Whether the rollouts of a group share one forward of their prompt with its image: in training, for the old
            and reference log-probabilities, and on the degraded image. The result is the same to float rounding.
            `"auto"` shares if the model and the batch settings allow it and logs it once, `"on"` raises an error if
            they don't, `"off"` runs a row for each rollout, as TRL does (docs/performance.md).
    """

    prompt: str | None = field(
        default=None, metadata={"help": "Question to ask for every row, in place of the prompt column."}
    )
    score_min: float = field(
        default=1.0, metadata={"help": "Lower end of the scale on which the policy answers and `mos` is given."}
    )
    score_max: float = field(default=5.0, metadata={"help": "Upper end of that scale."})
    score_parser: str = field(
        default="number",
        metadata={"help": "How scores are read: number (<answer>3.75</answer>), boxed, or module:function."},
    )
    max_pixels: int | None = field(
        default=None, metadata={"help": "Largest image, in pixels, that the model sees; larger ones are downscaled."}
    )

    uncertainty_alpha: float = field(
        default=0.2,
        metadata={"help": "Strength of the reweighting of advantages by the variance of a group's scores; 0 is off."},
    )
    uncertainty_weighting: str = field(
        default="exponential",
        metadata={
            "help": "Shape of the weight: exp(-alpha u), 1 - alpha u, or 1 / (1 + alpha u).",
            "choices": list(get_args(UncertaintyWeighting)),
        },
    )
    uncertainty_unparsed: str = field(
        default="penalize",
        metadata={
            "help": "Rollouts without a readable score count as uncertain (`penalize`) or not at all (`exclude`).",
            "choices": list(get_args(UncertaintyUnparsed)),
        },
    )
    normalize_uncertainty_weights: bool = field(
        default=False, metadata={"help": "Rescale the weights to mean 1 over the groups of a generation batch."}
    )

    perception_gamma: float = field(
        default=1e-4,
        metadata={"help": "Coefficient of the perception KL between original and degraded image; 0 is off."},
    )
    perception_gamma_schedule: str = field(
        default="cosine",
        metadata={"help": "How gamma falls with the epoch.", "choices": list(get_args(GammaSchedule))},
    )
    perception_gamma_zero_epoch: float = field(
        default=5.0, metadata={"help": "Epoch from which gamma is 0; 0 keeps it constant."}
    )
    perception_kl_clip: float = field(default=10.0, metadata={"help": "Upper bound of the KL estimate of one token."})
    perception_gradient: str = field(
        default="both",
        metadata={
            "help": "Branches that get a gradient from the perception terms.",
            "choices": list(get_args(PerceptionGradient)),
        },
    )
    entropy_estimator: str = field(
        default="exact",
        metadata={
            "help": "Entropy of the token distribution, or minus the log-probability of the drawn token.",
            "choices": list(get_args(EntropyEstimator)),
        },
    )
    entropy_original_coef: float = field(
        default=1e-3, metadata={"help": "Coefficient of the entropy on the original image; 0 is off."}
    )
    entropy_degraded_coef: float = field(
        default=1e-3, metadata={"help": "Coefficient of the entropy on the degraded image; 0 is off."}
    )

    degradations: list[str] = field(
        default_factory=lambda: list(RELEASE_DEGRADATIONS),
        metadata={"help": "Kinds of the degraded view, e.g. `gaussian_blur` (the release's) or `motion_blur@3`."},
    )
    degradation_seed: int = field(default=0, metadata={"help": "Seed of the degraded views."})

    shared_prefix: str = field(
        default="auto",
        metadata={
            "help": "Whether the rollouts of a group share one forward of their prompt.",
            "choices": list(get_args(SharedPrefix)),
        },
    )

    def __post_init__(self):
        super().__post_init__()
        self._check_choices()
        self._check_ranges()
        self._check_degradations()
        self._check_combinations()

    @property
    def question(self) -> Question:
        """What the policy is asked; its prompt is `None` if the rows bring their own."""
        return Question(self.prompt, self.score_min, self.score_max, self.score_parser, self.max_pixels)

    @property
    def uses_degraded_view(self) -> bool:
        """Whether there is a second forward on the degraded image."""
        return self.perception_gamma > 0 or self.entropy_degraded_coef > 0

    @property
    def uses_perception_terms(self) -> bool:
        """Whether the loss has any term beyond GRPO's."""
        return self.uses_degraded_view or self.entropy_original_coef > 0

    def _check_choices(self) -> None:
        for name, literal in _CHOICES.items():
            value, allowed = getattr(self, name), get_args(literal)
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; set it to one of: {', '.join(allowed)}.")

    def _check_ranges(self) -> None:
        for name in _NON_NEGATIVE:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}; it must be a finite number of at least 0 (0 turns it off).")
        if not (math.isfinite(self.perception_kl_clip) and self.perception_kl_clip > 0):
            raise ValueError(f"perception_kl_clip is {self.perception_kl_clip}; it must be a finite number above 0.")
        scale = (self.score_min, self.score_max)
        if not all(map(math.isfinite, scale)):
            raise ValueError(f"score_min {scale[0]} and score_max {scale[1]} must be finite.")
        _ = self.question.parse  # its own checks; an unknown function is an error now, not after the first batch
        if self.uncertainty_weighting == "linear" and self.uncertainty_alpha > 1:
            raise ValueError(
                f"uncertainty_alpha is {self.uncertainty_alpha}, but the linear weight 1 - alpha u would turn "
                "negative above 1; lower it or set uncertainty_weighting to exponential or reciprocal."
            )
        if self.degradation_seed < 0:
            raise ValueError(f"degradation_seed is {self.degradation_seed}; it must be at least 0.")

    def _check_degradations(self) -> None:
        if isinstance(self.degradations, str):
            raise ValueError(f"degradations is the text {self.degradations!r}; give a list: [{self.degradations}].")
        if self.uses_degraded_view and not self.degradations:
            raise ValueError("degradations is empty; name at least one kind, for example gaussian_blur.")
        for name in self.degradations:
            parse_degradation(name)

    def _check_combinations(self) -> None:
        if self.entropy_degraded_coef > 0 and self.perception_gradient == "original":
            raise ValueError(
                f"entropy_degraded_coef is {self.entropy_degraded_coef}, but with perception_gradient 'original' the "
                "degraded branch has no gradient, so the term could not act; set perception_gradient to both or "
                "entropy_degraded_coef to 0."
            )
        if self.entropy_degraded_coef > 0 and self.entropy_estimator == "sampled":
            raise ValueError(
                f"entropy_degraded_coef is {self.entropy_degraded_coef}, but the sampled estimate on the degraded "
                "image is a cross-entropy that cancels the perception KL; set entropy_estimator to exact or "
                "entropy_degraded_coef to 0."
            )
        if (self.entropy_original_coef > 0 or self.entropy_degraded_coef > 0) and (
            self.entropy_coef != 0 or self.use_adaptive_entropy
        ):
            raise ValueError(
                "TRL's entropy_coef rewards entropy, entropy_original_coef and entropy_degraded_coef minimise it; "
                "set entropy_coef to 0 and use_adaptive_entropy to False, or our two coefficients to 0."
            )
        refuse_reentrant_checkpointing(self)


def refuse_reentrant_checkpointing(args: HawkeyeGRPOConfig) -> None:
    """Raise `ValueError` for two forwards with gradient under reentrant checkpointing; TRL may have set it."""
    reentrant = (args.gradient_checkpointing_kwargs or {}).get("use_reentrant")
    two_forwards = args.uses_degraded_view and args.perception_gradient == "both"
    if args.gradient_checkpointing and reentrant and two_forwards:
        raise ValueError(
            "Two forwards with gradient under reentrant gradient checkpointing fail in distributed training "
            "('marked ready twice'); set gradient_checkpointing_kwargs to {'use_reentrant': False}, or "
            "perception_gradient to original and entropy_degraded_coef to 0."
        )
