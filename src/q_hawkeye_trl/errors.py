"""What ends a training run on purpose: errors that say what happened and how to go on."""

import signal
from pathlib import Path

from .checkpoints import list_checkpoints


class TrainingError(RuntimeError):
    """The run can't go on: a loss or gradient that is no number, or a reward function that failed."""


class CheckpointWriteError(OSError):
    """A checkpoint could not be written, for example because the disk is full; those from before are untouched."""


class TrainingInterrupted(SystemExit):
    """
    A signal ended the run after a checkpoint was saved. Uncaught it ends the process with the status that a shell
    reports for the signal, 128 plus its number: 143 for SIGTERM.

    Args:
        signal_number (`int`):
            The signal.
        step (`int`):
            Step of the checkpoint.
        output_dir (`str` or `Path`):
            Folder of the run.
    """

    def __init__(self, signal_number: int, step: int, output_dir: str | Path):
        super().__init__(128 + signal_number)
        self.signal = signal.Signals(signal_number)
        self.step = step
        self.output_dir = Path(output_dir)

    def __str__(self) -> str:
        return f"{self.signal.name} came; the run stops after step {self.step}. {how_to_go_on(self.output_dir)}"


def how_to_go_on(output_dir: str | Path) -> str:
    """
    Says from where a run that ended can be resumed.

    Args:
        output_dir (`str` or `Path`):
            Folder of the run.

    Returns:
        `str`: A sentence.
    """
    whole = list_checkpoints(output_dir, whole=True)
    if not whole:
        return f"{output_dir} holds no whole checkpoint: start anew, with a smaller save_steps if runs end early."
    return f"{whole[0]} is whole; go on from it by --resume_from_checkpoint true (resume_from_checkpoint=True)."
