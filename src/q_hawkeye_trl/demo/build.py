"""Builds the demo policy from scratch: tokenizer, vision tower, answers, figures on validation pictures."""

import platform
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

from ..evaluation.held_out import evaluate_held_out
from ..io.atomic import write_json
from ..io.outputs import refuse_taken
from ..io.publication import publish_folder
from .answers import ANSWER_STD
from .architecture import build_model, build_processor
from .contents import IMAGE_SIZE
from .synthetic import SEEN_KINDS, content_seed, draw_sample
from .training import Pool, pretrain_tower, teach_answers

SETTINGS = {
    "contents": 6000,
    "tower": {"steps": 1300, "batch_size": 64, "learning_rate": 1.5e-3},
    "answers": {"steps": 1000, "batch_size": 64, "learning_rate": 1.5e-3, "tower_learning_rate": 3e-4},
    "validation": 300,
}
"""Sizes and rates of the bundled policy, tuned on validation pictures alone."""


def build_demo_policy(
    output_dir: str | Path, *, seed: int = 0, settings: dict = SETTINGS, progress: bool = True
) -> dict[str, object]:
    """
    Build the demo policy and save it with its provenance; about seven minutes on two cores.

    Args:
        output_dir (`str` or `Path`):
            Folder to write: missing or empty.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the pictures, the initial weights and the order of training, in [0, 100).
        settings (`dict`, *optional*, defaults to `SETTINGS`):
            Sizes and learning rates, with the keys of `SETTINGS`.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show progress bars.

    Returns:
        `dict[str, object]`: The provenance, as saved in `provenance.json`.

    Raises:
        `FileExistsError`: The folder is not empty.
    """
    output_dir = Path(output_dir)
    refuse_taken(output_dir, "name another folder by --output_dir")
    started = time.monotonic()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor, losses = _train(seed, settings, progress)
    validation = _validate(model, processor, seed, settings["validation"], progress)
    provenance = _provenance(seed, settings, losses, validation, time.monotonic() - started)
    with publish_folder(output_dir) as staging:
        model.save_pretrained(staging)
        processor.save_pretrained(staging)
        write_json(staging / "provenance.json", provenance)
    return provenance


def _train(seed: int, settings: dict, progress: bool):
    processor = build_processor()
    model = build_model(processor.tokenizer)
    pool = Pool(settings["contents"], seed, progress)
    rng = np.random.default_rng([seed, 4])
    model.train()
    error = pretrain_tower(model, processor, pool, **settings["tower"], rng=rng, progress=progress)
    loss = teach_answers(model, processor, pool, **settings["answers"], rng=rng, progress=progress)
    losses = {"tower_mean_squared_error": round(error, 4), "answer_cross_entropy": round(loss, 4)}
    return model.eval(), processor, losses


def _validate(model, processor, seed: int, count: int, progress: bool) -> dict[str, float]:
    samples = [draw_sample(content_seed("validation", seed, index)) for index in range(count)]
    images = [Image.fromarray(sample.picture) for sample in samples]
    quality = [sample.quality for sample in samples]
    figures = evaluate_held_out(model, processor, images, quality, seed=seed, progress=progress)
    return {key: round(value, 4) for key, value in figures.items()}


def _provenance(seed: int, settings: dict, losses: dict, validation: dict, seconds: float) -> dict[str, object]:
    return {
        "seed": seed,
        "kinds": list(SEEN_KINDS),
        "image_size": list(IMAGE_SIZE),
        "answer_std": ANSWER_STD,
        "settings": settings,
        "content_seeds": {
            use: [content_seed(use, seed, 0), content_seed(use, seed, settings[key] - 1)]
            for use, key in (("pretraining", "contents"), ("validation", "validation"))
        },
        "losses": losses,
        "validation": validation,
        "seconds": round(seconds),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
        },
    }
