"""
What this package hooks in TRL and transformers, and what happens when a release changes it.

[`HOOKS`] lists the hooked methods of each part with the parameters that the part counts on. A changed hook of the
method is an error at construction. A changed hook of any other part switches that part off with one warning.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import trl
from transformers import GenerationMixin
from transformers.utils import logging
from transformers.utils.versions import require_version
from trl import GRPOTrainer

logger = logging.get_logger(__name__)

TRL_REQUIREMENT = "trl>=1.16"

TOKEN_TYPE_KEYS = ("token_type_ids", "mm_token_type_ids")
"""Keys of a TRL batch that describe its images with one entry per token."""

IMAGE_KEYS = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "image_position_ids",
)
"""Keys of a TRL batch that describe its images with one entry per image, tile or prompt."""

VISION_KEYS = (*IMAGE_KEYS, *TOKEN_TYPE_KEYS)

_LOGPS = (
    "model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, compute_aux_loss, pixel_values, "
    "image_grid_thw, num_images, pixel_attention_mask, spatial_shapes, num_tiles, image_sizes, token_type_ids, "
    "mm_token_type_ids, image_position_ids"
)
_RUN_EPOCH = (
    "model, epoch, train_dataloader, steps_in_epoch, num_update_steps_per_epoch, trial, ignore_keys_for_eval, "
    "start_time, resume_from_checkpoint, epochs_trained, steps_trained_in_current_epoch"
)
_DATALOADER = "dataset, description, batch_size, sampler_fn, is_training, dataloader_key"

METHOD = "method"
PROMPT_SHARING = "prompt sharing"
EXACT_RESUME = "exact resume"
GRADIENT_CHECK = "gradient check"
GENERATION = "generation with shared prompts"

HOOKS: dict[str, dict[str, str]] = {
    METHOD: {
        "_set_signature_columns_if_needed": "",
        "_calculate_rewards": "inputs, prompts, completions, completion_ids_list",
        "_generate_and_score_completions": "inputs",
        "_get_per_token_logps_and_entropies": _LOGPS,
        "_compute_loss": "model, inputs",
        "get_eval_dataloader": "eval_dataset",
        "save_model": "output_dir, _internal_call",
        "evaluate": "eval_dataset, ignore_keys, metric_key_prefix",
        "evaluation_loop": "dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix",
    },
    PROMPT_SHARING: {
        "_get_dataloader": _DATALOADER,
        "_prepare_inputs": "generation_batch",
        "_tokenize_prompts": "prompts",
        "_generate_single_turn": "prompt_ids, images, multimodal_fields, num_generations, has_tool_images",
        "_generate_and_score_completions": "inputs",
        "_get_per_token_logps_and_entropies": _LOGPS,
        "_compute_loss": "model, inputs",
    },
    EXACT_RESUME: {
        "train": "resume_from_checkpoint, trial, ignore_keys_for_eval",
        "log": "logs, start_time",
        "_get_dataloader": _DATALOADER,
        "_get_train_sampler": "dataset",
        "_load_callback_state": "",
        "_load_from_checkpoint": "resume_from_checkpoint, model",
        "_load_best_model": "",
        "_run_epoch": _RUN_EPOCH,
        "_evaluate": "trial, ignore_keys_for_eval, skip_scheduler",
        "_finalize_training": "trial, num_train_samples, start_time",
        "_get_output_dir": "trial",
        "_save_rng_state": "output_dir",
        "_save_checkpoint": "model, trial",
    },
    GRADIENT_CHECK: {"_get_grad_norm": "model, grad_norm"},
    GENERATION: {
        "_maybe_prepare_encoder_kwargs_for_generation": "inputs_tensor, model_kwargs, model_input_name, "
        "generation_config",
        "_prefill": "input_ids, generation_config, model_kwargs, is_first_iteration",
    },
}
"""Hooked methods of each part, with their parameters: of `transformers.GenerationMixin` for the generation, of
`trl.GRPOTrainer` for all others."""

WITHOUT = {
    PROMPT_SHARING: "Each rollout gets a row of its own, as in TRL: the same result, slower.",
    EXACT_RESUME: "Checkpoints and resuming are those of transformers.",
    GRADIENT_CHECK: "A gradient that is not finite no longer stops the run.",
    GENERATION: "Each rollout gets a row of its own, as in TRL: the same result, slower.",
}
"""What a run does without each of the parts that can be left out."""


def changed_hooks(part: str) -> str | None:
    """Describe the hooked methods of a part that differ in the installed release, `None` if all are as expected."""
    owner = GenerationMixin if part == GENERATION else GRPOTrainer
    changes = []
    for name, expected in HOOKS[part].items():
        method = getattr(owner, name, None)
        if method is None:
            changes.append(f"{owner.__name__}.{name} is gone")
            continue
        found = ", ".join(list(inspect.signature(method).parameters)[1:])
        if found != expected:
            changes.append(f"{owner.__name__}.{name} takes ({found}), expected ({expected})")
    return "; ".join(changes) or None


def check_method_hooks() -> None:
    """Raise `ImportError` for an old TRL, `RuntimeError` if a method that the Q-Hawkeye method hooks has changed."""
    require_version(TRL_REQUIREMENT, "Gradients don't flow through TRL's entropies before.")
    if changes := changed_hooks(METHOD):
        raise RuntimeError(
            f"trl {trl.__version__} does not fit q_hawkeye_trl: {changes}. Install a release that "
            "docs/trl_features.md lists as tested."
        )


def mode(trainer: GRPOTrainer) -> str:
    """Return `"train"` or `"eval"`, as TRL names the phases."""
    return "train" if trainer.model.training else "eval"


def group_size(trainer: GRPOTrainer) -> int:
    """Return the rollouts per prompt of the current phase, G."""
    return trainer.num_generations if trainer.model.training else trainer.num_generations_eval


Mixin = TypeVar("Mixin", bound=type)


def optional_part(part: str) -> Callable[[Mixin], Mixin]:
    """
    Make a mixin of `GRPOTrainer` step aside if one of its hooks has changed upstream.

    The hooks are checked once at construction, which logs one warning. Calls to them then go to the next class.
    """

    def decorate(mixin: Mixin) -> Mixin:
        for name in HOOKS[part]:
            setattr(mixin, name, _passing_through(mixin, name, part))
        mixin.__init__ = _checking_init(mixin, part)  # type: ignore[misc]
        return mixin

    return decorate


def is_active(trainer: Any, part: str) -> bool:
    """Tell whether a trainer has a part, with all its hooks as expected."""
    return trainer.__dict__.get("_active_parts", {}).get(part, False)


def _checking_init(mixin: type, part: str) -> Callable[..., None]:
    init = vars(mixin).get("__init__")

    @functools.wraps(init or mixin.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        changes = changed_hooks(part)
        self.__dict__.setdefault("_active_parts", {})[part] = changes is None
        if changes:
            logger.warning(f"{mixin.__name__} is off, since trl {trl.__version__} changed: {changes}. {WITHOUT[part]}")
        if init is None:
            super(mixin, self).__init__(*args, **kwargs)  # type: ignore[arg-type]
        else:
            init(self, *args, **kwargs)

    return __init__


def _passing_through(mixin: type, name: str, part: str) -> Callable[..., Any]:
    hook = vars(mixin)[name]

    @functools.wraps(hook)
    def call(self, *args: Any, **kwargs: Any) -> Any:
        if is_active(self, part):
            return hook(self, *args, **kwargs)
        return getattr(super(mixin, self), name)(*args, **kwargs)

    return call
