"""Where the rollouts of a group can share one forward of their prompt, and if not, why not."""

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
"""Implementations beside which the grouped attention works; it itself runs on SDPA's kernels."""


def model_problem(model: PreTrainedModel) -> str | None:
    """
    Says why a model can't run packed rows.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Policy or reference model, as TRL loads it; with or without an adapter.

    Returns:
        `str` or `None`: `None` if it can.
    """
    if is_peft_model(model) and model.active_peft_config.is_prompt_learning:
        return "the adapter adds virtual tokens to every row"
    model = unwrap_policy(model)
    kind = model.config.model_type
    if kind not in MODELS:
        return f"{kind} is not among the models that it is tested with ({', '.join(MODELS)})"
    config = model.get_decoder().config
    attention = base_implementation(config._attn_implementation)
    if attention not in ATTENTIONS:
        return f"attn_implementation is {attention}, and it needs {' or '.join(ATTENTIONS)}"
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:  # then all layers have the config's window, if it has one
        windowed = getattr(config, "sliding_window", None) is not None
    else:
        windowed = set(layer_types) != {"full_attention"}
    if windowed:
        return "some layers of the decoder see a window of the sequence only"
    return None


def batch_problem(batch_size: int, group_size: int, name: str) -> str | None:
    """
    Says why batches can't hold whole groups.

    Args:
        batch_size (`int`):
            Rollouts of one forward on one device.
        group_size (`int`):
            Rollouts of a group.
        name (`str`):
            Option that sets `batch_size`.

    Returns:
        `str` or `None`: `None` if they can.
    """
    if batch_size % group_size == 0:
        return None
    fitting = sorted({max(batch_size // group_size, 1) * group_size, -(-batch_size // group_size) * group_size})
    return (
        f"a forward of {name} {batch_size} rollouts does not hold whole groups of {group_size}; set {name} to "
        f"{' or '.join(map(str, fitting))}"
    )


def choose_sharing(trainer: Any) -> dict[str, bool]:
    """
    Decides from the config, alike on every rank, where the rollouts of a group share the forward of their prompt, and
    says so once.

    Args:
        trainer ([`HawkeyeGRPOTrainer`]):
            Trainer, after TRL has set it up.

    Returns:
        `dict[str, bool]`: For `"train"` and `"eval"`.

    Raises:
        `ValueError`: `shared_prefix` is `"on"`, but training can't share; the message says why.
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
        logger.warning_once(f"shared_prefix auto: off, since {problem}.")
        return {"train": False, "eval": False}
    logger.warning_once("shared_prefix: on, the rollouts of a group share one forward of their prompt.")
    evaluates = trainer.num_generations_eval > 1 and (
        batch_problem(args.per_device_eval_batch_size, trainer.num_generations_eval, "per_device_eval_batch_size")
        is None
    )
    return {"train": True, "eval": evaluates}


def _trainer_problem(trainer: Any) -> str | None:
    if trainer.tools or trainer.environment_factories is not None:
        return "tools and environments give the rollouts of a group prompts of their own"
    if not trainer.use_vllm and trainer.rollout_func is None:  # vLLM has no generation_config
        cache = trainer.generation_config.cache_implementation
        if cache not in DYNAMIC_CACHES:
            return f"generation with a {cache} cache can't take up a prompt that is run once a group"
        if changes := changed_hooks(GENERATION):
            return f"the installed transformers does not fit ({changes})"
    if trainer.aux_loss_enabled:
        return "the load-balancing loss of a mixture of experts counts the tokens of every row"
    models = [model for model in (trainer.model, trainer.ref_model) if model is not None]
    return next(filter(None, (model_problem(trainer.accelerator.unwrap_model(model)) for model in models)), None)
