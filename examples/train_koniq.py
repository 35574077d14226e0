"""
Trains a vision-language model to score image quality with Q-Hawkeye.

Without arguments it runs the embedded default: the bundled tiny policy on a synthetic set in KonIQ-10k's layout, on
any machine.

    accelerate launch examples/train_koniq.py

A real model on the real set:

    accelerate launch examples/train_koniq.py --config recipes/koniq/qwen2_5_vl_7b.yaml --data_dir PATH/koniq10k

Every key of a recipe can be overridden on the command line, for example `--seed 1 --max_steps 20`.
"""

import json
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import AutoProcessor, ProgressCallback
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from q_hawkeye_trl import HawkeyeGRPOConfig, HawkeyeGRPOTrainer
from q_hawkeye_trl.callbacks import (
    METRICS_FILE,
    BriefProgressCallback,
    HeldOutCallback,
    MetricsFileCallback,
    read_metrics,
)
from q_hawkeye_trl.checkpoints import last_whole_checkpoint
from q_hawkeye_trl.data.folder import check_rows, load_folder
from q_hawkeye_trl.data.koniq import load_koniq
from q_hawkeye_trl.demo.policy import demo_policy_path
from q_hawkeye_trl.demo.synthetic import write_synthetic_koniq
from q_hawkeye_trl.evaluation.sharded import evaluate_sharded
from q_hawkeye_trl.files import write_json
from q_hawkeye_trl.recipe import check_recipe
from q_hawkeye_trl.reporting import before_after_table, plot_curves
from q_hawkeye_trl.rewards import get_reward
from q_hawkeye_trl.run_folder import choose_run_folder, create_run_folder

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

    def __post_init__(self):
        if isinstance(self.reward_parameters, str):
            self.reward_parameters = json.loads(self.reward_parameters)
        if self.data_dir is not None and self.dataset is not None:
            raise ValueError("data_dir and dataset are both given; keep one.")
        unused = set(self.reward_parameters or {}) - set(self.rewards)
        if unused:
            raise ValueError(
                f"reward_parameters names {', '.join(unused)}, not among rewards {', '.join(self.rewards)}."
            )


def main() -> None:
    started = time.time()
    script_args, training_args, model_args, is_default = parse_arguments()

    # Folders
    resume = training_args.resume_from_checkpoint
    choice = [choose_run_folder(training_args.output_dir, resume=bool(resume), numbered=is_default)]
    training_args.output_dir = str(broadcast_object_list(choice)[0])  # one choice for all ranks
    create_run_folder(training_args.output_dir)
    checkpoint = find_checkpoint(resume, training_args.output_dir)

    # Data
    with training_args.main_process_first(desc="writing the synthetic set"):
        train_dataset, held_out = load_data(script_args, training_args)
    if script_args.held_out_images is not None:
        held_out = held_out.select(range(min(script_args.held_out_images, len(held_out))))

    # Model
    policy = model_args.model_name_or_path or str(demo_policy_path())
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    }
    limits = {} if script_args.max_pixels is None else {"max_pixels": script_args.max_pixels}
    processor = AutoProcessor.from_pretrained(
        policy, padding_side="left", trust_remote_code=training_args.trust_remote_code, **limits
    )

    # Training
    trainer = HawkeyeGRPOTrainer(
        model=policy,
        reward_funcs=build_rewards(script_args, training_args),
        args=training_args,
        train_dataset=train_dataset,
        processing_class=processor,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    measured = HeldOutCallback(
        lambda: evaluate_sharded(trainer, held_out, batch_size=script_args.held_out_batch_size),
        training_args.output_dir,
    )
    trainer.remove_callback(ProgressCallback)
    for callback in (BriefProgressCallback(), MetricsFileCallback(training_args.output_dir), measured):
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()

    # Report
    if trainer.accelerator.is_main_process:
        report(training_args, measured, len(held_out), time.time() - started)
    trainer.accelerator.end_training()


def parse_arguments() -> tuple[ScriptArguments, HawkeyeGRPOConfig, ModelConfig, bool]:
    """Reads the recipe and the command line; without `--config` the demo's recipe gives the defaults."""
    arguments = sys.argv[1:]
    if "--config" not in arguments:
        arguments = ["--config", str(DEMO_RECIPE), *arguments]
    parser = TrlParser((ScriptArguments, HawkeyeGRPOConfig, ModelConfig))
    check_recipe(arguments[arguments.index("--config") + 1], {action.dest for action in parser._actions})
    parsed = parser.parse_args_and_config(arguments)
    return *parsed, "--config" not in sys.argv and "--output_dir" not in sys.argv


def find_checkpoint(resume: str | None, output_dir: str) -> str | None:
    """Turns `--resume_from_checkpoint` (nothing, `true` or a path) into the checkpoint's folder."""
    if resume is None or str(resume).lower() == "false":
        return None
    if str(resume).lower() == "true":
        return str(last_whole_checkpoint(output_dir))
    return str(resume)


def load_data(script_args: ScriptArguments, training_args: HawkeyeGRPOConfig) -> tuple[Dataset, Dataset]:
    """Loads the training and the held-out images; writes the synthetic set first where no data is named."""
    if script_args.dataset is not None:
        parts = tuple(load_folder(script_args.dataset, split) for split in ("train", script_args.held_out_split))
        for part in parts:
            check_rows(part, score_min=training_args.score_min, score_max=training_args.score_max)
        return parts
    data_dir = script_args.data_dir
    if data_dir is None:
        data_dir = script_args.synthetic_dir
        write_synthetic_koniq(data_dir)
    splits = ("training", script_args.held_out_split)
    return tuple(load_koniq(data_dir, split, scale=script_args.mos_scale) for split in splits)


def build_rewards(script_args: ScriptArguments, training_args: HawkeyeGRPOConfig) -> list:
    """Builds the rewards by name, on the config's scale of scores."""
    scale = {"score_min": training_args.score_min, "score_max": training_args.score_max}
    parameters = script_args.reward_parameters or {}
    return [
        get_reward(name, **({} if name in ("format", "repetition") else scale) | parameters.get(name, {}))
        for name in script_args.rewards
    ]


def report(training_args: HawkeyeGRPOConfig, measured: HeldOutCallback, images: int, seconds: float) -> None:
    """Writes `summary.json` and the curves, and prints the table."""
    folder = Path(training_args.output_dir)
    summary = {
        "before": measured.before,
        "after": measured.after,
        "seconds": round(seconds, 1),
        "seed": training_args.seed,
        "held_out_images": images,
        "versions": {name: version(name) for name in ("q-hawkeye-trl", "trl", "transformers", "torch")},
    }
    write_json(folder / "summary.json", summary)
    plot_curves(read_metrics(folder / METRICS_FILE), folder / "curves.png", title=folder.name)
    print(f"\n{before_after_table(measured.before, measured.after, images)}\n")
    print(f"{seconds:.0f} seconds, seed {training_args.seed}. In {folder}:")
    print(f"  summary.json   these figures\n  {METRICS_FILE}  every log\n  curves.png     the learning curves")
    print("  model.safetensors, config.json and the processor: load the folder with from_pretrained")


if __name__ == "__main__":
    main()
