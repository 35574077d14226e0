"""What ends a training run on purpose: errors that say what happened and how to go on."""

import signal


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
        hint (`str`):
            How to resume.
    """

    def __init__(self, signal_number: int, step: int, hint: str):
        super().__init__(128 + signal_number)
        self.signal = signal.Signals(signal_number)
        self.step = step
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.signal.name} came; the run stops after step {self.step}. {self.hint}"
