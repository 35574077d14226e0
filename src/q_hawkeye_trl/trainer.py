"""`HawkeyeGRPOTrainer`: the Q-Hawkeye method with prompt sharing and exact resume."""

from .checkpointing.exact_resume import ExactResumeMixin
from .guards import FiniteGradientMixin
from .hawkeye_method import HawkeyeMethodTrainer
from .shared_prefix.shared_prompt import SharedPromptMixin


class HawkeyeGRPOTrainer(SharedPromptMixin, ExactResumeMixin, FiniteGradientMixin, HawkeyeMethodTrainer):
    """
    Trainer for the Q-Hawkeye method, proposed in [Q-Hawkeye: Reliable Visual Policy Optimization for Image Quality
    Assessment](https://huggingface.co/papers/2601.22920).

    It extends two methods of [`~trl.GRPOTrainer`]. `_generate_and_score_completions` multiplies the advantages of a
    group by a weight that falls with the variance of its rollouts' scores. `_compute_loss` adds three terms: minus
    gamma times the KL divergence between the policy on the original and on a degraded image, and the entropies on both
    images. With all coefficients 0 it is bitwise identical to stock GRPO.

    Three mixins do the rest. `SharedPromptMixin` runs each prompt once per group, not once per rollout.
    `ExactResumeMixin` makes a resumed run bitwise identical to an uninterrupted one (docs/resume.md).
    `FiniteGradientMixin` stops a run before a step with a gradient that is not finite. A mixin whose hooks a TRL
    release has changed is switched off with a warning (docs/trl_features.md).

    Args:
        model, reward_funcs, args, train_dataset, eval_dataset, ...:
            As in [`~trl.GRPOTrainer`]. `args` is a [`HawkeyeGRPOConfig`]. Datasets have the columns `prompt` and
            `image` or `images`. Optional columns are `degraded_image` or `degraded_images` (by default the degraded
            view is made on the fly), `mos`, `mos_std`, `image_id` and `dataset`.
        score_fn (`Callable[[str], float | None]`, *optional*):
            Reads the score of a completion's text, `None` for no score. By default the parser that `args.score_parser`
            names.
        validation ([`~evaluation.validation.Validation`], *optional*):
            Measures SRCC, PLCC, parse rate and spread on `eval_dataset`. By default TRL's evaluation loop runs.

    Raises:
        `TypeError`: `args` is not a [`HawkeyeGRPOConfig`].
        `ValueError`: A setting or dataset does not fit the method; the message says what to change.
        `ImportError`: TRL is older than the first supported release.
        `RuntimeError`: The installed TRL has changed a method that the Q-Hawkeye method hooks.
        [`~errors.TrainingError`]: While training: a loss or gradient is not finite, or a reward function failed.

    Logged metrics, in addition to TRL's:
        - `scores/parse_rate`: share of rollouts with a score.
        - `scores/spread`: standard deviation of the scores of a group, averaged over groups.
        - `scores/srcc`, `scores/plcc`: correlation of mean scores with MOS over the last 512 images.
        - `uncertainty/mean`, `uncertainty/weight_mean`, `uncertainty/weight_min`: uncertainty in [0, 1] and weights.
        - `perception/kl`, `perception/entropy_original`, `perception/entropy_degraded`: means per token, in nats.
        - `perception/gamma`: coefficient of the perception KL at this step.
        - `perception/rows_without_view`: rows of a generation batch without a degraded view.

    Example:

    ```python
    from q_hawkeye_trl import HawkeyeGRPOConfig, HawkeyeGRPOTrainer
    from q_hawkeye_trl.rewards import accuracy_reward, format_reward

    trainer = HawkeyeGRPOTrainer(
        model="Qwen/Qwen2.5-VL-3B-Instruct",
        reward_funcs=[accuracy_reward, format_reward],
        args=HawkeyeGRPOConfig(output_dir="runs/koniq", bf16=True),
        train_dataset=dataset,
    )
    trainer.train()
    ```
    """
