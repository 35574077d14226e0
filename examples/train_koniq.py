"""
Trains a vision-language model to score image quality with Q-Hawkeye.

Without arguments it runs the embedded default: the bundled tiny policy on a synthetic set in KonIQ-10k's layout, on
any machine.

    accelerate launch examples/train_koniq.py

A real model on the real set:

    accelerate launch examples/train_koniq.py --config recipes/koniq/qwen2_5_vl_7b.yaml --data_dir PATH/koniq10k

Every key of a recipe can be overridden on the command line, for example `--seed 1 --max_steps 20`, and a recipe may
inherit from another one (docs/recipes.md). The validation images are measured while it trains, and the best
checkpoint is kept and loaded at the end: `--validate false` and `--keep_best false` switch that off.
`--resume_from_checkpoint auto` goes on after a crash or a stop (docs/resume.md).
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import AutoProcessor, EarlyStoppingCallback, ProgressCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from q_hawkeye_trl import HawkeyeGRPOConfig, HawkeyeGRPOTrainer
from q_hawkeye_trl.callbacks import (
    METRICS_FILE,
    BriefProgressCallback,
    HeldOutCallback,
    MetricsFileCallback,
    read_metrics,
)
from q_hawkeye_trl.checkpoints import checkpoint_problem, last_whole_checkpoint
from q_hawkeye_trl.data.folder import check_rows, load_folder
from q_hawkeye_trl.data.koniq import load_koniq
from q_hawkeye_trl.demo.policy import demo_policy_path
from q_hawkeye_trl.demo.synthetic import write_synthetic_koniq
from q_hawkeye_trl.errors import TrainingError, TrainingInterrupted, how_to_go_on
from q_hawkeye_trl.evaluation.validation import BEST_METRIC, Validation, evaluate_sharded
from q_hawkeye_trl.files import write_json
from q_hawkeye_trl.model_card import CARD_FILE, data_part, recipe_of, write_model_card
from q_hawkeye_trl.processes import end_processes
from q_hawkeye_trl.recipe import load_recipe, split_recipe
from q_hawkeye_trl.reporting import before_after_table, plot_curves
from q_hawkeye_trl.rewards import get_reward
from q_hawkeye_trl.run_facts.log import RunFactsCallback
from q_hawkeye_trl.run_folder import choose_run_folder, create_run_folder, was_started
from q_hawkeye_trl.staging import explained_write_errors
from q_hawkeye_trl.stopping import StopOnSignalCallback
from q_hawkeye_trl.text import QUALITY_SCALE

DEMO_RECIPE = Path(__file__).parents[1] / "recipes" / "demo" / "tiny.yaml"


@dataclass
class ScriptArguments:
    """Arguments of this script; all others belong to [`HawkeyeGRPOConfig`] and [`~trl.ModelConfig`]."""

    data_dir: str | None = field(
        default=None, metadata={"help": "Folder of KonIQ-10k (images and an official label file)."}
    )
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "In place of data_dir: a `datasets` folder with image(s), mos and optional degraded_image(s)."
        },
    )
    synthetic_dir: str = field(
        default="runs/synthetic_koniq10k",
        metadata={"help": "Where the synthetic set is written when neither data_dir nor dataset is given."},
    )
    allow_missing: int = field(
        default=0, metadata={"help": "So many images of a split of data_dir may be missing; their rows are left out."}
    )
    mos_scale: str = field(
        default="deqa",
        metadata={"help": "How KonIQ's MOS is brought to [1, 5]: deqa, raw, zscore-minmax or zscore."},
    )
    rewards: list[str] = field(
        default_factory=lambda: ["accuracy", "format"],
        metadata={"help": "Rewards that are summed: accuracy, format, repetition, threshold, rank, margin."},
    )
    reward_parameters: dict | str | None = field(
        default=None, metadata={"help": 'Parameters by reward, as JSON: \'{"accuracy": {"tau": 0.5}}\'.'}
    )
    max_pixels: int | None = field(
        default=None, metadata={"help": "Largest image, in pixels, that the model sees; larger ones are shrunk."}
    )
    held_out_split: str = field(
        default="test", metadata={"help": "Split that is measured before and after training; tune on validation."}
    )
    held_out_images: int | None = field(
        default=None, metadata={"help": "Measure on the first so many images of that split only."}
    )
    held_out_batch_size: int = field(default=64, metadata={"help": "Images a batch of that measurement."})
    validate: bool = field(
        default=True,
        metadata={
            "help": "Measure the validation images while training: as `eval_strategy` says; without one at every "
            "checkpoint, or four times a run that saves none."
        },
    )
    validation_split: str | None = field(
        default=None, metadata={"help": "Their split. By default `validation`, where the data has one."}
    )
    validation_images: int | None = field(
        default=None, metadata={"help": "Measure the first so many images of that split only."}
    )
    validation_passes: int = field(default=4, metadata={"help": "Sampled answers an image in that measurement."})
    keep_best: bool = field(
        default=True,
        metadata={
            "help": "Keep the checkpoint that is best on the validation images by `metric_for_best_model` "
            f"({BEST_METRIC} by default), and load it at the end."
        },
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many validations without a better one."}
    )

    def __post_init__(self):
        if isinstance(self.reward_parameters, str):
            try:
                self.reward_parameters = json.loads(self.reward_parameters)
            except json.JSONDecodeError as error:
                raise ValueError(f"reward_parameters is not JSON ({error}); write '{{\"accuracy\": ...}}'.") from error
        for name in ("held_out_images", "validation_images"):
            if (count := getattr(self, name)) is not None and count < 2:
                raise ValueError(f"{name} is {count}; give at least 2, or leave it out to measure on all images.")
        if self.data_dir is not None and self.dataset is not None:
            raise ValueError("data_dir and dataset are both given; keep one.")
        unused = set(self.reward_parameters or {}) - set(self.rewards)
        if unused:
            raise ValueError(
                f"reward_parameters names {', '.join(unused)}, not among rewards {', '.join(self.rewards)}."
            )
        for name in self.rewards:  # before anything is loaded
            parameters = (self.reward_parameters or {}).get(name, {})
            if not isinstance(parameters, dict):
                raise ValueError(f"reward_parameters gives {name} {parameters!r}; give a mapping like {{tau: 0.5}}.")
            get_reward(name, **parameters)


def main() -> None:
    started = time.time()
    script_args, training_args, model_args, is_default = parse_arguments()

    # Folders
    resume = resume_choice(training_args.resume_from_checkpoint)
    goes_on = resume in ("true", "auto") or lies_in(resume, training_args.output_dir)
    choice = [choose_run_folder(training_args.output_dir, resume=goes_on, numbered=is_default)]
    training_args.output_dir = str(broadcast_object_list(choice)[0])  # one choice for all ranks
    create_run_folder(training_args.output_dir)
    checkpoint = find_checkpoint(resume, training_args.output_dir)

    # Data
    with training_args.main_process_first(desc="writing the synthetic set"):
        train_dataset, validation, held_out = load_data(script_args, training_args)
    held_out = first_rows(held_out, script_args.held_out_images)
    if validation is not None:
        validation = first_rows(validation, script_args.validation_images)
        plan_validation(script_args, training_args)

    # Training
    trainer = build_trainer(script_args, training_args, model_args, train_dataset, validation)
    measured = HeldOutCallback(
        lambda: evaluate_sharded(trainer, held_out, batch_size=script_args.held_out_batch_size),
        training_args.output_dir,
    )
    trainer.remove_callback(ProgressCallback)
    for callback in (
        RunFactsCallback(trainer, script_args, model_args, held_out=held_out),
        BriefProgressCallback(),
        MetricsFileCallback(training_args.output_dir),
        measured,
        StopOnSignalCallback(),
    ):
        trainer.add_callback(callback)
    if script_args.early_stopping_patience is not None and validation is not None:
        trainer.add_callback(EarlyStoppingCallback(script_args.early_stopping_patience))
    with clean_end(trainer):
        trainer.train(resume_from_checkpoint=checkpoint)
    with explained_write_errors("the model", training_args.output_dir):
        trainer.save_model()

    # Report
    if trainer.accelerator.is_main_process:
        parts = [("training", "train", train_dataset), ("validation", "validation", validation)]
        parts.append(("evaluation", script_args.held_out_split, held_out))
        report(
            script_args, model_args, trainer, measured, parts, time.time() - started, resumed=checkpoint is not None
        )
    end_processes(trainer.accelerator)


def parse_arguments() -> tuple[ScriptArguments, HawkeyeGRPOConfig, ModelConfig, bool]:
    """Reads the recipe and the command line; without `--config` the demo's recipe gives the defaults."""
    choice = split_recipe(sys.argv[1:], DEMO_RECIPE)
    parser = TrlParser((ScriptArguments, HawkeyeGRPOConfig, ModelConfig), allow_abbrev=False)
    parser.epilog = (
        "--config FILE names a recipe, a YAML file whose keys are these options. --base FILE takes the place of the "
        "last recipe that it inherits from."
    )
    options = {action.dest: action for action in parser._actions if action.dest != "help"}
    recipe = load_recipe(choice.recipe, options, base=choice.base)
    os.environ.update({name: str(value) for name, value in recipe.pop("env", {}).items()})
    parser.set_defaults_with_config(**recipe)
    parsed = parser.parse_args_into_dataclasses(choice.arguments)
    return *parsed, choice.is_default


def resume_choice(value: str | bool | None) -> str | None:
    """
    Reads `--resume_from_checkpoint`: `None`, `"true"` (the last whole checkpoint of the output folder), `"auto"` (the
    same, or the start where there is none yet), or the path of a checkpoint.
    """
    text = str(value).lower()
    if text in ("none", "false"):
        return None
    return text if text in ("true", "auto") else str(value)


def lies_in(checkpoint: str | None, folder: str) -> bool:
    """Whether a checkpoint is one of this folder's run, however both paths are written."""
    return checkpoint is not None and Path(folder).resolve() in Path(checkpoint).resolve().parents


def find_checkpoint(resume: str | None, output_dir: str) -> str | None:
    """Turns what [`resume_choice`] read into the checkpoint's folder."""
    if resume is None:
        return None
    choice: list = [None, None]
    if PartialState().is_main_process:  # one choice, and one message, for all ranks
        try:
            if resume in ("true", "auto"):
                started = resume == "true" or was_started(output_dir)
                choice[0] = str(last_whole_checkpoint(output_dir)) if started else None
            elif problem := checkpoint_problem(resume):
                choice[1] = f"{resume} is not a whole checkpoint ({problem}); name another one."
            else:
                choice[0] = resume
        except (FileNotFoundError, FileExistsError) as error:
            choice[1] = str(error)
    checkpoint, problem = broadcast_object_list(choice)
    if problem:
        raise ValueError(problem)
    return checkpoint


@contextlib.contextmanager
def clean_end(trainer: HawkeyeGRPOTrainer) -> Iterator[None]:
    """Leaves the process group where a signal ends the run; Ctrl-C gets a line in place of a traceback."""
    try:
        yield
    except TrainingInterrupted as stopped:
        end_processes(trainer.accelerator, status=128 + stopped.signal)
        raise
    except KeyboardInterrupt:
        if trainer.accelerator.is_main_process:
            print(f"\nStopped after step {trainer.state.global_step}. {how_to_go_on(trainer.args.output_dir)}")
        sys.exit(128 + signal.SIGINT)


def load_data(
    script_args: ScriptArguments, training_args: HawkeyeGRPOConfig
) -> tuple[Dataset, Dataset | None, Dataset]:
    """
    Loads the training, validation and held-out images; writes the synthetic set first where no data is named. Without
    a validation split, or with `--validate false`, the second one is `None`.
    """
    validation_split = (script_args.validation_split or "validation") if script_args.validate else None
    if script_args.dataset is not None:
        scale = (training_args.score_min, training_args.score_max)
        train, held_out = (
            load_folder(script_args.dataset, split, scale=scale) for split in ("train", script_args.held_out_split)
        )
        validation = (
            None if validation_split is None else load_validation(script_args, training_args, validation_split)
        )
        for part in (train, validation, held_out):
            if part is not None:
                check_rows(part, score_min=training_args.score_min, score_max=training_args.score_max)
        return train, validation, held_out
    data_dir = script_args.data_dir
    if (training_args.score_min, training_args.score_max) != QUALITY_SCALE:
        raise ValueError(
            f"score_min {training_args.score_min:g} and score_max {training_args.score_max:g} are not the scale of "
            "KonIQ-10k's MOS here and of the prompt, 1 to 5; leave them out, or give a --dataset with its own prompts."
        )
    if data_dir is None:
        data_dir = script_args.synthetic_dir
        write_synthetic_koniq(data_dir)
    options = {"scale": script_args.mos_scale, "allow_missing": script_args.allow_missing}
    train, validation, held_out = (
        None if split is None else load_koniq(data_dir, split, **options)
        for split in ("training", validation_split, script_args.held_out_split)
    )
    return train, validation, held_out


def load_validation(script_args: ScriptArguments, args: HawkeyeGRPOConfig, split: str) -> Dataset | None:
    """Loads the validation split of a prepared folder; says so where it has none and none was named."""
    try:
        return load_folder(script_args.dataset, split, scale=(args.score_min, args.score_max))
    except ValueError as error:
        if script_args.validation_split is not None:
            raise
        if args.process_index == 0:
            print(f"Training without validation: {error}")
        return None


def first_rows(dataset: Dataset, count: int | None) -> Dataset:
    """The first `count` rows, all of them for `None`."""
    return dataset if count is None else dataset.select(range(min(count, len(dataset))))


def plan_validation(script_args: ScriptArguments, args: HawkeyeGRPOConfig) -> None:
    """
    Settles, in place, when the validation images are measured and which checkpoint is kept. What the recipe or the
    command line says about evaluation and checkpoints stays as it is.
    """
    if args.eval_strategy == IntervalStrategy.NO:
        if args.save_strategy in (
            SaveStrategy.STEPS,
            SaveStrategy.EPOCH,
        ):  # where there are checkpoints to choose from
            args.eval_strategy, args.eval_steps = IntervalStrategy(args.save_strategy), args.save_steps
        else:
            args.eval_strategy, args.eval_steps = IntervalStrategy.STEPS, 0.25  # of the whole run
        args.do_eval = True
    if not script_args.keep_best or args.load_best_model_at_end:
        return
    if args.save_strategy == SaveStrategy.NO:
        args.save_strategy, args.save_total_limit = SaveStrategy.BEST, args.save_total_limit or 1
    together = args.save_strategy == args.eval_strategy and args.save_steps == args.eval_steps
    if args.save_strategy != SaveStrategy.BEST and not together:
        if args.process_index == 0:
            print("Checkpoints and validations fall on different steps: the last model is kept, not the best one.")
        return
    args.load_best_model_at_end = True
    args.metric_for_best_model = args.metric_for_best_model or BEST_METRIC
    args.greater_is_better = True if args.greater_is_better is None else args.greater_is_better


def build_trainer(
    script_args: ScriptArguments,
    training_args: HawkeyeGRPOConfig,
    model_args: ModelConfig,
    train_dataset: Dataset,
    validation: Dataset | None,
) -> HawkeyeGRPOTrainer:
    """Loads the model, the bundled policy where none is named, and its processor into a trainer."""
    policy = model_args.model_name_or_path or str(demo_policy_path())
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    } | (training_args.model_init_kwargs or {})
    limits = {} if script_args.max_pixels is None else {"max_pixels": script_args.max_pixels}
    processor = AutoProcessor.from_pretrained(
        policy,
        revision=model_args.model_revision,
        padding_side="left",
        trust_remote_code=training_args.trust_remote_code,
        **limits,
    )
    return HawkeyeGRPOTrainer(
        model=policy,
        reward_funcs=build_rewards(script_args, training_args),
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=validation,
        validation=None
        if validation is None
        else Validation(batch_size=script_args.held_out_batch_size, passes=script_args.validation_passes),
        processing_class=processor,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )


def build_rewards(script_args: ScriptArguments, training_args: HawkeyeGRPOConfig) -> list:
    """Builds the rewards by name, on the config's scale of scores."""
    scale = {"score_min": training_args.score_min, "score_max": training_args.score_max}
    parameters = script_args.reward_parameters or {}
    return [
        get_reward(name, **({} if name in ("format", "repetition") else scale) | parameters.get(name, {}))
        for name in script_args.rewards
    ]


def report(
    script_args: ScriptArguments,
    model_args: ModelConfig,
    trainer: HawkeyeGRPOTrainer,
    measured: HeldOutCallback,
    parts: list[tuple[str, str, Dataset | None]],
    seconds: float,
    *,
    resumed: bool,
) -> None:
    """Writes `summary.json`, the curves and the model's card, and prints the table."""
    args, state = trainer.args, trainer.state
    folder, images = Path(args.output_dir), len(parts[-1][2])
    best = None
    if args.load_best_model_at_end and state.best_model_checkpoint is not None:
        best = {"step": state.best_global_step, "name": args.metric_for_best_model, "value": state.best_metric}
    packages = ("q-hawkeye-trl", "trl", "transformers", "torch", "datasets", "tokenizers")
    summary = {
        "before": measured.before,
        "after": measured.after,
        "best": best,
        "seconds": round(seconds, 1),
        "validation_seconds": round(trainer.validation.seconds, 1) if trainer.validation else 0.0,
        "seed": args.seed,
        "held_out_images": images,
        "versions": {name: version(name) for name in packages},
    }
    write_json(folder / "summary.json", summary)
    plot_curves(read_metrics(folder / METRICS_FILE), folder / "curves.png", title=folder.name)
    write_card(script_args, model_args, trainer, parts, summary, resumed=resumed)
    print(f"\n{before_after_table(measured.before, measured.after, images)}\n")
    if best is not None:
        print(f"The checkpoint of step {best['step']} is the best one by {best['name']}: {best['value']:.3f}.")
    print(f"{seconds:.0f} seconds, seed {args.seed}. In {folder}:")
    print(f"  summary.json   these figures\n  {METRICS_FILE}  every log\n  curves.png     the learning curves")
    print(f"  {CARD_FILE}      the model's card: data, recipe, versions, evaluation")
    print("  model.safetensors, config.json and the processor: load the folder with from_pretrained")


def write_card(
    script_args: ScriptArguments,
    model_args: ModelConfig,
    trainer: HawkeyeGRPOTrainer,
    parts: list[tuple[str, str, Dataset | None]],
    summary: dict,
    *,
    resumed: bool,
) -> None:
    """Writes the model's card from what the run knows."""
    args, folder = trainer.args, Path(trainer.args.output_dir)
    model = recipe_of(model_args)
    base_model = model.get("model_name_or_path")
    start = "the project's bundled toy policy" if base_model is None else base_model
    if base_model is not None and Path(base_model).exists():  # a folder of this machine is no recipe
        start, base_model = f"a local model, folder {Path(model.pop('model_name_or_path')).name}", None
    write_model_card(
        folder,
        name=folder.name,
        method={"name": trainer._name, **trainer._paper},
        start=start,
        base_model=base_model,
        tags=trainer._tag_names,
        data={
            "source": source_of(script_args),
            "score_min": args.score_min,
            "score_max": args.score_max,
            "mos_scale": script_args.mos_scale if script_args.dataset is None else None,
            "parts": [data_part(use, split, rows["mos"]) for use, split, rows in parts if rows is not None],
        },
        recipe=recipe_of(
            args,
            **model,
            rewards=script_args.rewards,
            reward_parameters=script_args.reward_parameters,
            max_pixels=script_args.max_pixels,
        ),
        validation=[line for line in read_metrics(folder / METRICS_FILE) if f"eval_{BEST_METRIC}" in line],
        steps=trainer.state.global_step,
        resumed=resumed,
        **{key: summary[key] for key in ("before", "after", "best", "seed", "seconds", "versions")},
    )


def source_of(script_args: ScriptArguments) -> str:
    """Where the images come from, without the folders above."""
    if script_args.dataset is not None:
        return f"Prepared data, folder {Path(script_args.dataset).name}"
    if script_args.data_dir is not None:
        return f"KonIQ-10k's layout, folder {Path(script_args.data_dir).name}"
    return "The project's synthetic set in KonIQ-10k's layout"


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, TrainingError) as error:  # its message, without the way to it
        if os.environ.get("Q_HAWKEYE_TRACEBACK"):
            raise
        sys.exit(f"train_koniq.py: {error}")
