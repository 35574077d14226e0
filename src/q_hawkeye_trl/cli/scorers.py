"""What the commands that score share: the policy, its scorer, and the processes of a launcher."""

import sys
from typing import Any


def chosen_policy(model: str | None, *, first: bool) -> tuple[str, str]:
    """
    Returns the policy to load and what to call it; the first process says so where it is the bundled toy.

    Args:
        model (`str`, *optional*):
            What `--model` named.
        first (`bool`):
            Whether this is the first process.

    Returns:
        `tuple[str, str]`: Folder or Hub name, and a name for outputs.
    """
    from ..demo.policy import demo_policy_path

    if model is not None:
        return model, model
    if first:
        print(
            "No --model: the bundled toy policy scores (0.8 million parameters, trained on synthetic pictures). It "
            "shows how things work; its scores of photographs mean little.",
            file=sys.stderr,
        )
    return str(demo_policy_path()), "bundled toy policy"


def make_scorer(policy: str, **options: Any):
    """Makes a `HawkeyeScorer` of these options; `ValueError` where its backend is not installed."""
    from transformers.utils import logging

    from ..scoring.scorer import HawkeyeScorer

    logging.disable_progress_bar()  # of the loading of weights
    try:
        return HawkeyeScorer(policy, **options)
    except ImportError as error:
        if options["backend"] == "vllm":  # not installed
            raise ValueError(str(error)) from error
        raise


def launched_processes():
    """The processes that a launcher started, and this one's device; one process and the default device without."""
    import atexit
    import os
    from datetime import timedelta

    from ..scoring.run import Processes

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(), None
    import torch
    from accelerate import PartialState

    # a process that is done waits for the others, which may take long
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=7))
    atexit.register(state.destroy_process_group)
    return Processes(state.process_index, state.num_processes, state.wait_for_everyone), state.device
