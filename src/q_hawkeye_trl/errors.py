"""Errors that end a training run and say how to resume."""

import signal


class TrainingError(RuntimeError):
    """The run can't continue: a loss or gradient is not finite, or a reward function failed."""


class CheckpointWriteError(OSError):
    """A checkpoint could not be written, for example on a full disk. Earlier checkpoints are intact."""


class TrainingInterrupted(SystemExit):
    """
    A signal ended the run after a checkpoint was saved.

    Uncaught, it ends the process with the status that a shell reports for the signal: 143 (128 + 15) for SIGTERM.

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
        return f"Received {self.signal.name}; the run stopped after step {self.step}. {self.hint}"
