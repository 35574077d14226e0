"""A run is resumed exactly from between two steps that share their rollouts."""

import itertools

import pytest

from test_resume import assert_resumed_exactly, resume, train
from tiny_models import tiny_dataset

CUT = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
WINDOWS = {
    "two iterations": {"num_iterations": 2, "max_steps": 4},
    "a batch for two steps": CUT | {"max_steps": 4},
    "both": CUT | {"num_iterations": 2, "max_steps": 5},
    # windows of six micro-batches in epochs of six, four a step: each epoch ends in a step of two
    "a step that an epoch cuts short": {
        "per_device_train_batch_size": 6,
        "gradient_accumulation_steps": 4,
        "steps_per_generation": 6,
        "num_generations": 6,
        "max_steps": 5,
        "train_dataset": tiny_dataset(6),
    },
}


FAST = [("two iterations", "off"), ("a step that an epoch cuts short", "on")]
CASES = [
    pytest.param(*case, marks=() if case in FAST else pytest.mark.slow)
    for case in itertools.product(WINDOWS, ("off", "on"))
]


@pytest.mark.parametrize(("window", "shared_prefix"), CASES)
def test_resumed_inside_a_window_equals_the_uninterrupted_run(tmp_path, window, shared_prefix):
    options = WINDOWS[window] | {"shared_prefix": shared_prefix, "logging_steps": 2}
    whole = train(tmp_path / "whole", **options)
    inside = {path.parent.name for path in (tmp_path / "whole").glob("checkpoint-*/rollouts_0.pt")}
    assert "checkpoint-1" in inside
    assert len(inside) < options["max_steps"]  # between windows none is stored
    for step in (1, 2, 3):
        checkpoint = tmp_path / "whole" / f"checkpoint-{step}"
        assert_resumed_exactly(resume(tmp_path / f"resumed-{step}", checkpoint, **options), whole)
