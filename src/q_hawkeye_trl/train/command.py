"""`q-hawkeye train`: reads the recipe, builds the trainer, trains, measures and saves."""

import os
import sys
import time
from collections.abc import Sequence

from datasets import Dataset
from transformers import AutoProcessor
from trl import get_peft_config, get_quantization_config

from ..checkpointing.staging import explained_write_errors
from ..demo.policy import demo_policy_path
from ..evaluation.validation import Validation
from ..process_exit import end_processes
from ..trainer import HawkeyeGRPOTrainer
from .arguments import TrainingOptions, make_parser, parse_arguments
from .callbacks import add_run_callbacks
from .inputs import build_rewards, load_data
from .launcher import launch_command, launch_parser, use_cores
from .outcome import clean_stop, short_errors, write_outcome
from .run_folder import prepare_run_folder

PROGRAM = "q-hawkeye train"


def main(argv: Sequence[str]) -> None:
    """
    Run `q-hawkeye train`, in this process or in several started by a launcher.

    Args:
        argv (`Sequence[str]`):
            Arguments after `train`.
    """
    with short_errors(PROGRAM):
        parser = make_parser(PROGRAM)
        parser._action_groups.insert(1, launch_parser()._action_groups[-1])
        if command := launch_command(argv, parser):
            sys.stdout.flush()
            os.execv(command[0], command)
        train(parse_arguments(argv, parser))


def train(options: TrainingOptions) -> HawkeyeGRPOTrainer:
    """
    Train a policy as the options say, measure it before and after, and write everything to its `output_dir`.

    Args:
        options ([`TrainingOptions`]):
            As [`parse_arguments`] returns them.

    Returns:
        [`HawkeyeGRPOTrainer`]: After the training. On several CPU processes this function exits the process.
    """
    started = time.time()
    script_args, training_args, model_args, is_default = options
    checkpoint = prepare_run_folder(training_args, numbered=is_default)
    use_cores(training_args.device, script_args.cpu_threads, training_args.output_dir)
    train_dataset, validation, held_out = load_data(script_args, training_args)
    trainer = build_trainer(options, train_dataset, validation)
    measured = add_run_callbacks(trainer, script_args, model_args, held_out)
    with clean_stop(trainer):
        trainer.train(resume_from_checkpoint=checkpoint)
    with explained_write_errors("the model", training_args.output_dir):
        trainer.save_model()
    write_outcome(trainer, script_args, model_args, measured, resumed=checkpoint is not None, started=started)
    end_processes(trainer.accelerator)
    return trainer


def build_trainer(options: TrainingOptions, train_dataset: Dataset, validation: Dataset | None) -> HawkeyeGRPOTrainer:
    """Load the model, by default the bundled policy, and its processor into a trainer."""
    script_args, training_args, model_args, _ = options
    policy = model_args.model_name_or_path or str(demo_policy_path())
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    } | (training_args.model_init_kwargs or {})
    limits = {} if training_args.max_pixels is None else {"max_pixels": training_args.max_pixels}
    processor = AutoProcessor.from_pretrained(
        policy,
        revision=model_args.model_revision,
        padding_side="left",
        trust_remote_code=training_args.trust_remote_code,
        **limits,
    )
    return HawkeyeGRPOTrainer(
        model=policy,
        reward_funcs=build_rewards(script_args),
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=validation,
        validation=Validation(batch_size=script_args.held_out_batch_size, passes=script_args.validation_passes),
        processing_class=processor,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
