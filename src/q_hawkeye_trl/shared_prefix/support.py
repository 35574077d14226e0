"""Decides whether the rollouts of a group can share one forward of their prompt, and says why not."""

from typing import Any

from accelerate.utils import is_peft_model
from transformers import PreTrainedModel
from transformers.utils import logging

from ..generation.prefill import DYNAMIC_CACHES
from ..trl_compat import GENERATION, changed_hooks
from .attention import base_implementation
from .forward import unwrap_policy

logger = logging.get_logger(__name__)

MODELS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "llava", "internvl")
"""Model types whose packed forward is tested against the plain one."""
ATTENTIONS = ("sdpa", "flash_attention_2")
"""Implementations that the grouped attention can be added to. It runs on SDPA's kernels."""


def model_problem(model: PreTrainedModel) -> str | None:
    """Say why a policy or reference model, with or without an adapter, can't run packed rows; `None` if it can."""
    if is_peft_model(model) and model.active_peft_config.is_prompt_learning:
        return "the adapter adds virtual tokens to every row"
    model = unwrap_policy(model)
    kind = model.config.model_type
    if kind not in MODELS:
        return f"{kind} is not one of the tested models ({', '.join(MODELS)})"
    config = model.get_decoder().config
    attention = base_implementation(config._attn_implementation)
    if attention not in ATTENTIONS:
        return f"attn_implementation is {attention}, expected {' or '.join(ATTENTIONS)}"
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:  # then all layers have the config's window, if it has one
        windowed = getattr(config, "sliding_window", None) is not None
    else:
        windowed = set(layer_types) != {"full_attention"}
    if windowed:
        return "some layers of the decoder see only a window of the sequence"
    return None


def batch_problem(batch_size: int, group_size: int, name: str) -> str | None:
    """Say why a `batch_size`, set by the option `name`, does not fit whole groups; `None` if it does."""
    if batch_size % group_size == 0:
        return None
    fitting = sorted({max(batch_size // group_size, 1) * group_size, -(-batch_size // group_size) * group_size})
    return (
        f"{name} {batch_size} is not a multiple of the group size {group_size}; set {name} to "
        f"{' or '.join(map(str, fitting))}"
    )


def choose_sharing(trainer: Any) -> dict[str, bool]:
    """
    Decide for the phases `"train"` and `"eval"` of a constructed trainer whether rollouts share their prompt; log it.

    The decision depends on the config only, so it is the same on every rank. Raise `ValueError` if `shared_prefix` is
    `"on"` but training can't share.
    """
    args = trainer.args
    if args.shared_prefix == "off":
        return {"train": False, "eval": False}
    problem = _trainer_problem(trainer) or batch_problem(
        args.per_device_train_batch_size, trainer.num_generations, "per_device_train_batch_size"
    )
    if problem is not None and args.shared_prefix == "on":
        raise ValueError(f"shared_prefix is on, but {problem}; or set shared_prefix to auto or off.")
    if problem is not None:
        logger.warning_once(f"shared_prefix is off: {problem}.")
        return {"train": False, "eval": False}
    logger.warning_once("shared_prefix is on: the rollouts of a group share one forward of their prompt.")
    evaluates = trainer.num_generations_eval > 1 and (
        batch_problem(args.per_device_eval_batch_size, trainer.num_generations_eval, "per_device_eval_batch_size")
        is None
    )
    return {"train": True, "eval": evaluates}


def _trainer_problem(trainer: Any) -> str | None:
    if trainer.tools or trainer.environment_factories is not None:
        return "tools and environments give each rollout of a group its own prompt"
    if not trainer.use_vllm and trainer.rollout_func is None:  # vLLM has no generation_config
        cache = trainer.generation_config.cache_implementation
        if cache not in DYNAMIC_CACHES:
            return f"the {cache} cache of the generation can't be repeated for the rollouts of a group"
        if changes := changed_hooks(GENERATION):
            return f"the installed transformers does not fit ({changes})"
    if trainer.aux_loss_enabled:
        return "the load-balancing loss of a mixture of experts counts the tokens of every row"
    models = [model for model in (trainer.model, trainer.ref_model) if model is not None]
    return next(filter(None, (model_problem(trainer.accelerator.unwrap_model(model)) for model in models)), None)
