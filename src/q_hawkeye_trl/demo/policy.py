"""The bundled policy: where it lies, and how it is made."""

import json
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch

from ..data.koniq import load_koniq
from ..evaluation.held_out import evaluate_held_out
from .answers import ANSWER_STD
from .architecture import build_model, build_processor
from .pretraining import PretrainingSet, train_to_answer, train_to_see
from .synthetic import CONTENT_SEEDS, SEEN_KINDS, write_synthetic_koniq

PICTURES = 4000
BATCH_SIZE = 64
SEEING_STEPS, SEEING_RATE = 900, 2e-3
ANSWERING_STEPS, ANSWERING_RATE = 800, 2e-3
MAX_NEW_TOKENS = 24
PROVENANCE_FILE = "provenance.json"


def demo_policy_path() -> Path:
    """
    Returns the folder of the bundled policy: a Qwen2.5-VL of under a million parameters that rates the distortions of
    the synthetic set. It is a toy: on photographs its scores mean little.

    Returns:
        `Path`: What `from_pretrained` loads.
    """
    return Path(__file__).parent / "weights"


def build_demo_policy(output_dir: str | Path, *, seed: int = 0) -> dict:
    """
    Makes the bundled policy anew: draws pictures, teaches a vision tower to see, teaches the policy to answer, and
    measures it on the validation split of the synthetic set. Takes some minutes on two cores.

    Args:
        output_dir (`str` or `Path`):
            Folder for model, processor and `provenance.json`; it must be empty or not exist.
        seed (`int`, *optional*, defaults to `0`):
            Seed of weights, pictures, order and raters.

    Returns:
        `dict`: What `provenance.json` holds.

    Raises:
        `FileExistsError`: The folder holds files already.
    """
    output_dir = Path(output_dir)
    if output_dir.exists() and any(output_dir.iterdir()):
        raise FileExistsError(f"{output_dir} is not empty; name an empty folder for the policy.")
    started = time.time()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        processor = build_processor()
        model = build_model(processor.tokenizer)
        data = PretrainingSet(processor, PICTURES, seed)
        common = {"batch_size": BATCH_SIZE, "seed": seed}
        train_to_see(model, data, steps=SEEING_STEPS, learning_rate=SEEING_RATE, **common)
        train_to_answer(model, processor, data, steps=ANSWERING_STEPS, learning_rate=ANSWERING_RATE, **common)
    model.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)

    provenance = {
        "seed": seed,
        "kinds": list(SEEN_KINDS),
        "content_seeds": [CONTENT_SEEDS["pretraining"].start, CONTENT_SEEDS["pretraining"].stop],
        "pictures": PICTURES,
        "batch_size": BATCH_SIZE,
        "seeing_steps": SEEING_STEPS,
        "answering_steps": ANSWERING_STEPS,
        "answer_std": ANSWER_STD,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": round(time.time() - started),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy", "pillow")},
        },
        "validation": _validate(model, processor),
    }
    (output_dir / PROVENANCE_FILE).write_text(json.dumps(provenance, indent=2) + "\n")
    return provenance


def _validate(model, processor) -> dict[str, float]:
    """Figures on a validation split; the test split has no part in the making."""
    with tempfile.TemporaryDirectory() as scratch:
        rows = load_koniq(write_synthetic_koniq(Path(scratch) / "koniq", seed=1, train=1, test=1), "validation")
        figures = evaluate_held_out(model, processor, rows, batch_size=100, max_new_tokens=MAX_NEW_TOKENS)
    return {name: round(value, 4) for name, value in figures.items()}
