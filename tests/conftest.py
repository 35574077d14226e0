"""Settings of every test: no network, few threads, a fixed seed, GPU tests only with a GPU."""

import os

# Libraries read these when they are imported; subprocesses inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # TRL's telemetry too
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "agg"

import random

import numpy as np
import pytest
import torch

# More threads slow down tiny models; with one pytest worker per core, one is enough.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, torch.get_num_threads()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch sees none"))


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Start each test from the same state of the global random generators."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
