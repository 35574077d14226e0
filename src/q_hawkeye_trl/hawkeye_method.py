"""`HawkeyeMethodTrainer`: the method as hooks on TRL's `GRPOTrainer`. The formulas are in `objective`."""

import math
import textwrap
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import datasets
import torch
from transformers import AutoProcessor
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from .checks import check_compatible, check_dataset
from .config import HawkeyeGRPOConfig
from .data.image_columns import DecodeOnce, with_uniform_images
from .degraded_batch import degraded_pixel_values
from .evaluation.metrics import ScoreMonitor
from .evaluation.validation import Validation
from .guards import check_finite, check_images_alike, find_not_finite, guarded_rewards
from .objective.perception import perception_kl, sampled_entropy
from .objective.reduction import token_weights
from .objective.schedule import perception_gamma_at
from .objective.uncertainty import rollout_uncertainty, score_statistics, uncertainty_weights
from .question import DEFAULT_TASK, common_prompt, finite_score, name_parser, save_questions, with_prompt
from .rewards import bind_question
from .text import completion_text
from .trl_compat import VISION_KEYS, check_method_hooks, group_size, mode

ScoreFunc = Callable[[str], float | None]

TERMS_OF_LOSS = ("advantages", "old_per_token_logps", "ref_per_token_logps", "importance_sampling_ratio")

DATASET_COLUMNS = ("degraded_image", "degraded_images", "mos", "mos_std", "image_id", "dataset")


class HawkeyeMethodTrainer(GRPOTrainer):
    """
    The Q-Hawkeye method on [`~trl.GRPOTrainer`].

    [`~trainer.HawkeyeGRPOTrainer`] adds prompt sharing, exact resume and the check of the gradients to it.
    """

    _tag_names = ["trl", "grpo", "q-hawkeye"]
    _name = "Q-Hawkeye"
    _paper = {
        "title": "Q-Hawkeye: Reliable Visual Policy Optimization for Image Quality Assessment",
        "id": "2601.22920",
        "citation": textwrap.dedent("""\
            @article{qhawkeye2026,
                title        = {{Q-Hawkeye: Reliable Visual Policy Optimization for Image Quality Assessment}},
                year         = 2026,
                eprint       = {arXiv:2601.22920},
            }"""),
    }

    def __init__(
        self,
        model,
        reward_funcs=None,
        args: HawkeyeGRPOConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        *positional,
        score_fn: ScoreFunc | None = None,
        validation: Validation | None = None,
        **kwargs,
    ):
        check_method_hooks()
        if args is None:
            args = HawkeyeGRPOConfig(f"{_model_name(model)}-Q-Hawkeye")
        if not isinstance(args, HawkeyeGRPOConfig):
            raise TypeError(
                f"args is a {type(args).__name__}; give a HawkeyeGRPOConfig (it takes all GRPOConfig fields)."
            )
        self.question = args.question
        self.score_fn = self.question.parse if score_fn is None else score_fn
        if score_fn is not None:
            self.question = replace(self.question, parser=name_parser(score_fn))
        if args.prompt is None:
            self.question = replace(self.question, prompt=common_prompt(train_dataset))
        else:
            train_dataset, eval_dataset = (
                with_prompt(train_dataset, args.prompt),
                with_prompt(eval_dataset, args.prompt),
            )
        parse = self.score_fn if score_fn is None else partial(finite_score, score_fn)
        reward_funcs = bind_question(reward_funcs, self.question, parse)
        if args.max_pixels is not None and not positional and kwargs.get("processing_class") is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            options = {"padding_side": "left", "truncation_side": "left", "trust_remote_code": args.trust_remote_code}
            kwargs["processing_class"] = AutoProcessor.from_pretrained(name, max_pixels=args.max_pixels, **options)
        check_dataset(train_dataset, args)
        check_dataset(eval_dataset, args)
        if isinstance(train_dataset, datasets.Dataset | datasets.IterableDataset):  # TRL refuses others by their type
            train_dataset = with_uniform_images(train_dataset)
        eval_dataset = with_uniform_images(eval_dataset)
        super().__init__(model, reward_funcs, args, train_dataset, eval_dataset, *positional, **kwargs)
        check_compatible(self)
        self.validation = validation
        self._monitors = {"train": ScoreMonitor(), "eval": ScoreMonitor()}
        self._row_weights: torch.Tensor | None = None  # (B,), from scoring to scaling the advantages
        self._seen_images = False
        self._not_finite: dict[str, torch.Tensor] = {}  # marks of the step's micro-batches so far
        self._captured: list | None = None  # log-probabilities and entropies of the loss's own forward

    _signature_columns: list[str] | None

    def _set_signature_columns_if_needed(self):
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            self._signature_columns = [*(self._signature_columns or []), *DATASET_COLUMNS]

    def get_eval_dataloader(self, eval_dataset=None):
        return super().get_eval_dataloader(with_uniform_images(eval_dataset))  # one passed to `evaluate`

    # Uncertainty-aware reweighting

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        with guarded_rewards(self):
            rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._row_weights = self._weigh_rows(inputs, completions)
        return rewards_per_func

    def _weigh_rows(self, inputs: list[dict[str, Any]], completions: list) -> torch.Tensor | None:
        """Compute the weights of this rank's rows (B,) from the scores of whole groups, which can span ranks."""
        phase, size = mode(self), group_size(self)
        local = torch.tensor(
            [[self._read_score(c), _number(x.get("mos"))] for x, c in zip(inputs, completions, strict=True)],
            device=self.accelerator.device,
        )
        scores, mos = self.accelerator.gather(local).unbind(dim=1)
        scores, mos = scores.view(-1, size), mos.view(-1, size)[:, 0]
        scale = {"score_min": self.args.score_min, "score_max": self.args.score_max}
        # clamped as in the uncertainty: an outlier would dominate the mean
        self._monitors[phase].update(scores.clamp(self.args.score_min, self.args.score_max), mos)
        self._add_metrics(score_statistics(scores, prefix="scores/", **scale))
        # replaces the last value: the correlation runs over batches
        self._metrics[phase] |= {f"scores/{k}": [v] for k, v in self._monitors[phase].correlations().items()}
        if size == 1 or self.args.uncertainty_alpha == 0:  # a single rollout has no spread
            return None

        uncertainty = rollout_uncertainty(scores, unparsed=self.args.uncertainty_unparsed, **scale)
        weights = uncertainty_weights(
            uncertainty,
            alpha=self.args.uncertainty_alpha,
            weighting=self.args.uncertainty_weighting,
            normalize=self.args.normalize_uncertainty_weights,
        )
        self._add_metrics(
            {
                "uncertainty/mean": uncertainty.mean().item(),
                "uncertainty/weight_mean": weights.mean().item(),
                "uncertainty/weight_min": weights.min().item(),
            },
        )
        start = self.accelerator.process_index * len(inputs)
        return weights.repeat_interleave(size)[start : start + len(inputs)]

    def _read_score(self, completion) -> float:
        score = finite_score(self.score_fn, completion_text(completion))
        return math.nan if score is None else float(score)

    def _generate_and_score_completions(self, inputs):
        check_images_alike(inputs, self.accelerator)
        output = super()._generate_and_score_completions(inputs)
        weights, self._row_weights = self._row_weights, None
        if weights is not None:
            advantages = output["advantages"]
            output["advantages"] = advantages * (weights if advantages.dim() == 1 else weights.unsqueeze(1))
        if self._wants_degraded_view():
            self._attach_degraded_view(inputs, output)
        return output

    # Perception-aware loss

    def _gamma(self) -> float:
        return perception_gamma_at(
            self.state.epoch or 0.0,
            gamma=self.args.perception_gamma,
            schedule=self.args.perception_gamma_schedule,
            zero_epoch=self.args.perception_gamma_zero_epoch,
        )

    def _wants_degraded_view(self) -> bool:
        # Config and epoch only, never local rows: every rank must run the same forwards (ZeRO-3 hangs otherwise).
        return self.args.entropy_degraded_coef > 0 or self._gamma() > 0

    def _attach_degraded_view(self, inputs: list[dict[str, Any]], output: dict[str, Any]) -> None:
        """Add the degraded pixels as a list with one entry per row, which TRL shuffles and splits with the rows."""
        self._check_images_seen("pixel_values" in output)
        has_view = torch.zeros(len(inputs), dtype=torch.bool, device=self.accelerator.device)
        if "pixel_values" in output:
            output["degraded_pixel_values"], has_view = self._degraded_pixels(inputs, output)
        output["has_degraded_view"] = has_view
        unpaired = self.accelerator.reduce((~has_view).sum().float(), reduction="sum")
        self._add_metrics({"perception/rows_without_view": unpaired.item()})

    def _check_images_seen(self, here: bool) -> None:
        """Raise `ValueError` on every rank if the first batch has no images; later batches may have none."""
        if self._seen_images:
            return
        seen = self.accelerator.reduce(torch.tensor(float(here), device=self.accelerator.device), reduction="sum")
        self._seen_images = seen.item() > 0
        if not self._seen_images:
            raise ValueError(
                "The perception loss needs images, but no row of the first batch has one; add an image or images "
                "column, or set perception_gamma and entropy_degraded_coef to 0 to train without it."
            )

    def _degraded_pixels(self, inputs: list[dict[str, Any]], output: dict[str, Any]):
        given = any(name in inputs[0] for name in ("degraded_image", "degraded_images"))
        return degraded_pixel_values(
            inputs,
            output,
            self.processing_class,
            degradations=None if given else self.args.degradations,
            degradation_seed=self.args.degradation_seed,
            # evaluation uses one fixed view, so that its losses can be compared
            epoch=math.floor(self.state.epoch or 0.0) if self.model.training else 0,
            chat_template_kwargs=self.chat_template_kwargs,
            tools=self.tools or None,
        )

    @contextmanager
    def _capture_forward(self):
        self._captured = []
        try:
            yield self._captured
        finally:
            self._captured = None  # it holds the graph

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        logps, entropies, aux_loss = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        if self._captured is not None:
            self._captured.append((logps, entropies))
        return logps, entropies, aux_loss

    def _compute_loss(self, model, inputs):
        with self._capture_forward() as captured:
            loss = super()._compute_loss(model, inputs)
        ((logps, entropies),) = captured
        terms = {"policy loss": loss, "per_token_logps": logps}
        if self.args.uses_perception_terms:
            loss = loss + self._perception_loss(model, inputs, logps, entropies, terms)
        if self.model.training:
            terms |= {name: inputs[name] for name in TERMS_OF_LOSS if name in inputs}
            unused = inputs["completion_mask"] == 0  # padding can hold anything
            terms = {k: v.masked_fill(unused, 0.0) if v.shape == unused.shape else v for k, v in terms.items()}
            self._check_loss({"loss": loss, **terms})
        return loss

    def _check_loss(self, terms: dict[str, torch.Tensor]) -> None:
        """Check the losses of a step's micro-batches once, before the last backward, in which DeepSpeed steps."""
        for name, mark in find_not_finite(terms).items():
            self._not_finite[name] = mark | self._not_finite.get(name, mark)
        if self.accelerator.sync_gradients:
            marks, self._not_finite = self._not_finite, {}
            check_finite("loss", marks, self.accelerator, self.state.global_step + 1)

    def _perception_loss(
        self, model, inputs, logps: torch.Tensor, entropies: torch.Tensor, terms: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Compute the perception terms, averaged over tokens as TRL averages the policy loss; add them to `terms`."""
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        weights = self._token_weights(mask, inputs)
        sampled = self.args.entropy_estimator == "sampled"
        logps = logps.masked_fill(mask == 0, 0.0)
        entropy = sampled_entropy(logps) if sampled else entropies.masked_fill(mask == 0, 0.0)
        loss = self.args.entropy_original_coef * (entropy * weights).sum()
        sums = {"entropy_original": (entropy, mask)}
        gamma = self._gamma()
        if self.args.perception_gamma > 0:
            self._add_metrics({"perception/gamma": gamma})

        if "has_degraded_view" in inputs:
            logps_degraded, entropies_degraded = self._forward_degraded(model, inputs)
            pair_mask = mask * inputs["has_degraded_view"].unsqueeze(1)
            pair_weights = weights * inputs["has_degraded_view"].unsqueeze(1)
            logps_degraded = logps_degraded.masked_fill(mask == 0, 0.0)
            kl = perception_kl(logps, logps_degraded, clip=self.args.perception_kl_clip)
            entropy = sampled_entropy(logps_degraded) if sampled else entropies_degraded.masked_fill(mask == 0, 0.0)
            loss = loss - gamma * (kl * pair_weights).sum()
            loss = loss + self.args.entropy_degraded_coef * (entropy * pair_weights).sum()
            sums |= {"kl": (kl, pair_mask), "entropy_degraded": (entropy, pair_mask)}
        terms |= {f"perception/{name}": value for name, (value, _) in sums.items()}
        self._log_token_means(sums)
        return loss

    def _forward_degraded(self, model, inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute log-probabilities and entropies (B, T) of the same completions under the degraded images."""
        vision = {key: inputs.get(key) for key in VISION_KEYS}
        if "degraded_pixel_values" in inputs:
            vision["pixel_values"] = torch.cat(inputs["degraded_pixel_values"])
        frozen = self.args.perception_gradient == "original"
        checkpointing = disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs)
        with torch.no_grad() if frozen else nullcontext(), checkpointing if frozen else nullcontext():
            logps, entropies, _ = self._get_per_token_logps_and_entropies(
                model,
                torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
                torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
                inputs["completion_ids"].size(1),
                compute_entropy=True,
                **vision,
            )
        return logps, entropies

    def _token_weights(self, mask: torch.Tensor, inputs) -> torch.Tensor:
        return token_weights(
            mask,
            self.loss_type,
            num_items_in_batch=inputs["num_items_in_batch"],
            num_processes=self.accelerator.num_processes,
            accumulation_steps=self.current_gradient_accumulation_steps if self.model.training else 1,
            steps_per_generation=self.args.steps_per_generation,
            max_completion_length=self.max_completion_length,
            training=self.model.training,
        )

    # Metrics

    def _add_metrics(self, metrics: dict[str, float]) -> None:
        for key, value in metrics.items():
            self._metrics[mode(self)][key].append(value)

    def _log_token_means(self, values: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Log the mean of each (B, T) value over the tokens of its mask, over all ranks."""
        local = torch.stack([torch.stack([(v.detach() * m).sum(), m.sum().float()]) for v, m in values.values()])
        totals = self.accelerator.reduce(local, reduction="sum")
        for key, (total, count) in zip(values, totals.tolist(), strict=True):
            if count > 0:
                self._metrics[mode(self)][f"perception/{key}"].append(total / count)

    def evaluate(self, *args, **kwargs):
        self._monitors["eval"].clear()
        return super().evaluate(*args, **kwargs)

    def evaluation_loop(self, dataloader, *args, metric_key_prefix="eval", **kwargs):
        if self.validation is None:
            return super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        rows = dataloader.dataset
        return self.validation.evaluate(
            self, rows.dataset if isinstance(rows, DecodeOnce) else rows, metric_key_prefix
        )

    def save_model(self, output_dir=None, _internal_call=False):
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            save_questions(output_dir or self.args.output_dir, {DEFAULT_TASK: self.question})

    # State for an exact resume

    def _own_state(self):
        return {
            "monitors": {mode: monitor.state() for mode, monitor in self._monitors.items()},
            "seen_images": self._seen_images,
        }

    def _restore_own_state(self, state):
        for phase, pairs in state["monitors"].items():
            self._monitors[phase].load_state(pairs)
        self._seen_images = state["seen_images"]


def _number(value) -> float:
    return math.nan if value is None else float(value)


def _model_name(model) -> str:
    name = model if isinstance(model, str) else model.config._name_or_path
    return name.rstrip("/").split("/")[-1]
