"""`ExactResumeMixin`: checkpoints that are complete or absent, and a bitwise identical resume."""

import contextlib
import os
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from trl import GRPOTrainer

from ..trl_compat import EXACT_RESUME, optional_part
from .checkpoint_files import choose_checkpoint
from .epoch_sampler import EpochSampler
from .full_weights import has_full_weights, load_full_weights
from .run_state import read_run_state, restore_run_state, save_run_state
from .staging import STAGING, clear_staging, explained_write_errors, publish_checkpoint, publish_node_share
from .stop_on_signal import StopOnSignalCallback, shield_workers_from_signals


@optional_part(EXACT_RESUME)
class ExactResumeMixin(GRPOTrainer):
    """
    Mixin of [`~trl.GRPOTrainer`] whose runs survive a crash.

    A checkpoint is published only when it is complete. `resume_from_checkpoint=True` takes the newest complete one. A
    resumed run is bitwise identical to an uninterrupted one, also from between two steps that share their rollouts.

    A trainer with state of its own returns it from `_own_state()` and restores it by `_restore_own_state(state)`.
    """

    _staging: str | None = None
    _resumed: tuple[str, dict[str, Any]] | None = None  # checkpoint and its run state, until that is restored
    _is_resumed = False
    _knows_all_losses = True

    # Resuming

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        checkpoint = (
            choose_checkpoint(resume_from_checkpoint, self.args.output_dir) if resume_from_checkpoint else None
        )
        state = None if checkpoint is None else read_run_state(self, checkpoint)
        self._is_resumed = checkpoint is not None
        self._resumed = None if checkpoint is None or state is None else (checkpoint, state)
        self._knows_all_losses = checkpoint is None or state is not None
        if self.args.should_save:
            clear_staging(self.args.output_dir)
        try:
            return super().train(checkpoint, *args, **kwargs)
        finally:
            for callback in self._stopping_callbacks():
                callback.restore_handlers()

    def _stopping_callbacks(self) -> list[StopOnSignalCallback]:
        return [each for each in self.callback_handler.callbacks if isinstance(each, StopOnSignalCallback)]

    def _get_dataloader(self, *args, **kwargs):
        loader = super()._get_dataloader(*args, **kwargs)
        shield_workers_from_signals(
            loader, {number for callback in self._stopping_callbacks() for number in callback.signals}
        )
        return loader

    def _get_train_sampler(self, dataset=None):
        return EpochSampler(super()._get_train_sampler(dataset), lambda: self.state.epoch)

    def _load_callback_state(self):
        super()._load_callback_state()
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                # transformers' restore_callback_states_from_checkpoint replaces the callback by one with the saved
                # arguments. The caller's arguments (the patience) are kept here, and the run's counters restored.
                saved = self.state.stateful_callbacks.setdefault(type(callback).__name__, callback.state())
                if isinstance(saved, dict):
                    for name, value in saved.get("attributes", {}).items():
                        setattr(callback, name, value)

    def _restore_run_state(self) -> None:
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            restore_run_state(self, *resumed)
            if resumed[1]["own"] is not None:
                self._restore_own_state(resumed[1]["own"])

    def _run_epoch(self, *args, **kwargs):
        self._restore_run_state()
        if self.state.global_step >= self.state.max_steps:  # a finished run; transformers would add a step
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _evaluate(self, trial, ignore_keys_for_eval, skip_scheduler=False):
        if skip_scheduler and self._is_resumed:  # eval_on_start was done at the start of the run
            return {}
        return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)

    def _finalize_training(self, *args, **kwargs):
        self._restore_run_state()
        output = super()._finalize_training(*args, **kwargs)
        return output._replace(training_loss=output.metrics["train_loss"])

    def log(self, logs, start_time=None):
        # the mean over the run; transformers averages over the steps since the last start
        if "train_loss" in logs and self._knows_all_losses:
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 0.001)
        super().log(logs, start_time)

    # Weights

    def _loads_full_weights(self, checkpoint: str) -> bool:
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        return not sharded and not is_peft_model(self.model) and has_full_weights(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        if self._loads_full_weights(resume_from_checkpoint):
            load_full_weights(self.accelerator.unwrap_model(model or self.model), resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self):
        if self._loads_full_weights(self.state.best_model_checkpoint):
            load_full_weights(self.accelerator.unwrap_model(self.model), self.state.best_model_checkpoint)
        else:
            super()._load_best_model()

    # Saving

    def _get_output_dir(self, trial):
        return super()._get_output_dir(trial) if self._staging is None else self._staging

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        save_run_state(self, output_dir, self._own_state() if hasattr(self, "_own_state") else None)

    def _save_checkpoint(self, model, trial):
        run_dir, name = self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.push_to_hub:  # background uploads read the folder, so it can't be moved
            super()._save_checkpoint(model, trial)
            return
        with explained_write_errors(name, run_dir):
            if self.args.should_save:
                clear_staging(run_dir)
                # other nodes may have cached that the folder was removed; they find a new one of its name
                os.makedirs(os.path.join(run_dir, STAGING, name))
            self.accelerator.wait_for_everyone()  # before any rank writes
            with self._writing_to(os.path.join(run_dir, STAGING)):
                super()._save_checkpoint(model, trial)
            self._name_best_checkpoint(run_dir, name)
            self.accelerator.wait_for_everyone()  # until all ranks have written
            if self.args.should_save:
                self.state.save_to_json(os.path.join(run_dir, STAGING, name, TRAINER_STATE_NAME))
                publish_checkpoint(run_dir, name)
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_local_main_process and not self.args.should_save:
                publish_node_share(run_dir, name)
        if self.args.should_save:  # only now that the new one is complete
            rotate_checkpoints(
                output_dir=run_dir,
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    @contextlib.contextmanager
    def _writing_to(self, folder: str):
        self._staging = folder
        try:
            yield
        finally:
            self._staging = None

    def _name_best_checkpoint(self, run_dir: str, name: str) -> None:
        """Set `best_model_checkpoint`, which transformers looked for in the staging folder."""
        if not self.state.best_global_step:
            return
        best = f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        if best == name or Path(run_dir, best).exists():
            self.state.best_model_checkpoint = os.path.join(run_dir, best)
