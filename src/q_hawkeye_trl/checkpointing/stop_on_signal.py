"""`StopOnSignalCallback`: the signal that schedulers send before they kill ends a run with a checkpoint."""

import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from types import FrameType

import torch
from accelerate.utils import gather
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy
from transformers.utils import logging

from ..errors import TrainingInterrupted
from .checkpoint_files import resume_hint

logger = logging.get_logger(__name__)

SECOND_SIGNAL_AFTER = 3.0
"""Seconds within which a repeated signal counts as the same: a scheduler and a launcher may both send it."""


class StopOnSignalCallback(TrainerCallback):
    """
    End a run on SIGTERM with a checkpoint.

    The current step is finished, with its evaluation, and a checkpoint is saved. Then `trainer.train()` raises
    [`~errors.TrainingInterrupted`]; uncaught, it ends the process with status 143. A signal on one rank stops all
    ranks after the same step. A second signal, seconds later, ends the process at once, as does Ctrl-C. Before the
    first step, after the last one and after an error, signals have their usual effect.

    Args:
        signals (`Sequence[signal.Signals]`, *optional*, defaults to SIGTERM and SIGUSR1):
            Signals that end the run.

    Example:

    ```python
    from q_hawkeye_trl.checkpointing.stop_on_signal import StopOnSignalCallback

    trainer.add_callback(StopOnSignalCallback())
    trainer.train(resume_from_checkpoint=True)
    ```
    """

    # transformers' JITCheckpointCallback (enable_jit_checkpoint) loses guarantees: its ranks don't agree on a step, it
    # can save inside a step or before the step's evaluation, and `train` returns as if the run were finished.

    def __init__(self, signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGUSR1)):
        self.signals = tuple(signals)
        self._before: dict[int, object] = {}  # the caller's handlers
        self._came: tuple[int, float] | None = None  # signal and time of arrival
        self._stops = 0  # the signal that all ranks agreed on
        self._strategy: SaveStrategy | None = None  # the caller's, while replaced

    def on_train_begin(self, args, state, control, **kwargs):
        self._came, self._stops = None, 0  # left by a run stopped in this process

    def on_step_begin(self, args, state, control, **kwargs):
        if not self._before and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self.signals}

    def on_step_end(self, args, state, control, **kwargs):
        own = self._came[0] if self._came else 0
        # all ranks stop together: one alone would leave the others waiting
        self._stops = int(gather(torch.tensor([own], device=args.device)).max()) if args.world_size > 1 else own
        if self._stops:
            control.should_save = True

    def on_evaluate(self, args, state, control, **kwargs):
        if self._stops and args.save_strategy == SaveStrategy.BEST:
            # BEST saves only if this evaluation is the best one
            self._strategy, args.save_strategy = args.save_strategy, SaveStrategy.STEPS

    def on_save(self, args, state, control, **kwargs):
        if not self._stops:
            return
        self.restore_handlers()
        if self._strategy is not None:
            args.save_strategy, self._strategy = self._strategy, None
        stopped = TrainingInterrupted(self._stops, state.global_step, resume_hint(args.output_dir))
        if state.is_world_process_zero:
            logger.warning(str(stopped))
        raise stopped

    def on_train_end(self, args, state, control, **kwargs):
        self.restore_handlers()

    def restore_handlers(self) -> None:
        """Restore the handlers from before the first step. The trainer calls it if an error ends a run."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._came is None:
            self._came = (number, now)
        elif now - self._came[1] > SECOND_SIGNAL_AFTER:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def shield_workers_from_signals(loader: DataLoader, signals: Collection[signal.Signals]) -> None:
    """
    Make the workers of a data loader ignore signals that are sent to a whole process group or job.

    A worker that dies ends the run before the step is finished and saved. Signals from the training process, and its
    end, still end workers. Systems without `sigwaitinfo` (macOS, Windows) are unchanged. A worker is not yet
    protected between its fork and its first lines.
    """
    if signals and hasattr(signal, "sigwaitinfo"):
        loader = getattr(loader, "base_dataloader", loader)  # what accelerate's loaders wrap
        loader.worker_init_fn = partial(_begin_worker, tuple(signals), loader.worker_init_fn)


def _begin_worker(signals: Sequence[signal.Signals], begin: Callable[[int], None] | None, worker: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    threading.Thread(target=_end_with_parent, args=(signals, os.getppid()), daemon=True).start()
    if begin is not None:
        begin(worker)


def _end_with_parent(signals: Sequence[signal.Signals], parent: int) -> None:
    while signal.sigwaitinfo(signals).si_pid != parent:
        pass
    os._exit(0)  # as PyTorch's own handler does
