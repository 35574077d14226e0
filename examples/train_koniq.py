"""
Train a vision-language model to score image quality with Q-Hawkeye, step by step. `q-hawkeye train` does the same.

Without options this trains the bundled tiny policy on a synthetic set in KonIQ-10k's layout, on any machine:

    accelerate launch examples/train_koniq.py
    accelerate launch examples/train_koniq.py --config recipes/koniq/qwen2_5_vl_7b.yaml --data_dir PATH/koniq10k
"""

import sys
import time

from transformers import AutoProcessor
from trl import get_peft_config, get_quantization_config

from q_hawkeye_trl import HawkeyeGRPOTrainer
from q_hawkeye_trl.checkpointing.staging import explained_write_errors
from q_hawkeye_trl.demo.policy import demo_policy_path
from q_hawkeye_trl.evaluation.validation import Validation
from q_hawkeye_trl.process_exit import end_processes
from q_hawkeye_trl.train.arguments import parse_arguments
from q_hawkeye_trl.train.callbacks import add_run_callbacks
from q_hawkeye_trl.train.inputs import build_rewards, load_data
from q_hawkeye_trl.train.launcher import use_cores
from q_hawkeye_trl.train.outcome import clean_stop, short_errors, write_outcome
from q_hawkeye_trl.train.run_folder import prepare_run_folder


def main() -> None:
    started = time.time()
    # A recipe's keys and the command line: script_args, a HawkeyeGRPOConfig and a ModelConfig
    script_args, training_args, model_args, is_default = parse_arguments(sys.argv[1:])
    checkpoint = prepare_run_folder(training_args, numbered=is_default)
    use_cores(training_args.device, script_args.cpu_threads, training_args.output_dir)

    # Datasets with the columns prompt, image, mos and image_id
    train_dataset, validation_dataset, held_out_dataset = load_data(script_args, training_args)

    # Model
    policy = model_args.model_name_or_path or str(demo_policy_path())
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    } | (training_args.model_init_kwargs or {})
    limits = {} if training_args.max_pixels is None else {"max_pixels": training_args.max_pixels}
    trust = training_args.trust_remote_code
    revision = model_args.model_revision
    processor = AutoProcessor.from_pretrained(
        policy, revision=revision, padding_side="left", trust_remote_code=trust, **limits
    )

    # Train, with figures on held-out images before and after
    trainer = HawkeyeGRPOTrainer(
        model=policy,
        reward_funcs=build_rewards(script_args),
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=validation_dataset,
        validation=Validation(batch_size=script_args.held_out_batch_size, passes=script_args.validation_passes),
        processing_class=processor,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    measured = add_run_callbacks(trainer, script_args, model_args, held_out_dataset)
    with clean_stop(trainer):
        trainer.train(resume_from_checkpoint=checkpoint)

    # Save the model, its figures, curves and card
    with explained_write_errors("the model", training_args.output_dir):
        trainer.save_model()
    write_outcome(trainer, script_args, model_args, measured, resumed=checkpoint is not None, started=started)
    end_processes(trainer.accelerator)


if __name__ == "__main__":
    with short_errors("train_koniq.py"):
        main()
