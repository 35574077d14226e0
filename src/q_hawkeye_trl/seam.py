"""The seam in TRL: which methods the trainer hooks, with the parameters it counts on, checked at construction."""

import inspect

import trl
from trl import GRPOTrainer

VISION_KEYS = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)
"""Keys of a TRL batch that describe its images; the degraded forward passes all of them on."""

TOKEN_TYPE_KEYS = ("token_type_ids", "mm_token_type_ids")
"""Those of them that hold one entry a token."""

IMAGE_KEYS = tuple(key for key in VISION_KEYS if key not in TOKEN_TYPE_KEYS)
"""Those of them that hold one entry an image, tile or prompt."""

HOOKED_METHODS = {
    "_set_signature_columns_if_needed": (),
    "_prepare_inputs": ("generation_batch",),
    "_tokenize_prompts": ("prompts",),
    "_generate_single_turn": ("prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images"),
    "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "_generate_and_score_completions": ("inputs",),
    "_get_per_token_logps_and_entropies": (
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
        "compute_entropy",
        "compute_aux_loss",
        *VISION_KEYS,
    ),
    "_compute_loss": ("model", "inputs"),
    "train": ("resume_from_checkpoint", "trial", "ignore_keys_for_eval"),
    "_load_callback_state": (),
    "_load_from_checkpoint": ("resume_from_checkpoint", "model"),
    "_load_best_model": (),
    "_run_epoch": (
        "model",
        "epoch",
        "train_dataloader",
        "steps_in_epoch",
        "num_update_steps_per_epoch",
        "trial",
        "ignore_keys_for_eval",
        "start_time",
        "resume_from_checkpoint",
        "epochs_trained",
        "steps_trained_in_current_epoch",
    ),
    "_evaluate": ("trial", "ignore_keys_for_eval", "skip_scheduler"),
    "_finalize_training": ("trial", "num_train_samples", "start_time"),
    "_get_grad_norm": ("model", "grad_norm"),
    "log": ("logs", "start_time"),
    "_get_output_dir": ("trial",),
    "_save_rng_state": ("output_dir",),
    "_save_checkpoint": ("model", "trial"),
}


def check_seam(base: type = GRPOTrainer) -> None:
    """
    Checks that TRL's methods still have the parameters that [`HawkeyeGRPOTrainer`] counts on.

    Args:
        base (`type`, *optional*, defaults to [`~trl.GRPOTrainer`]):
            Class whose methods are hooked.

    Raises:
        `RuntimeError`: A method is gone or its parameters differ.
    """
    for name, expected in HOOKED_METHODS.items():
        method = getattr(base, name, None)
        found = None if method is None else tuple(inspect.signature(method).parameters)[1:]
        if found != expected:
            raise RuntimeError(
                f"{base.__name__}.{name} of trl {trl.__version__} takes {found}, but q_hawkeye_trl was written for "
                f"{expected}; install trl>=1.16,<1.17."
            )
