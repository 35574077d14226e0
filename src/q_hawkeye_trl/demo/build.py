"""Builds the demo policy from nothing: tokenizer, vision tower, answers, figures on validation pictures."""

import json
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

from ..evaluation.held_out import evaluate_held_out
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
    Builds the demo policy and saves it with its provenance; about seven minutes on two cores.

    Args:
        output_dir (`str` or `Path`):
            Folder to write; it must not exist or be empty.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the pictures, the initial weights and the order of training, in [0, 100).
        settings (`dict`, *optional*, defaults to `SETTINGS`):
            Sizes and rates, with the keys of `SETTINGS`.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show progress bars.

    Returns:
        `dict[str, object]`: The provenance, as saved in `provenance.json`.

    Raises:
        `FileExistsError`: The folder holds something.
    """
    output_dir = Path(output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise FileExistsError(f"{output_dir} exists and is not empty: choose another folder.")
    started = time.monotonic()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor, losses = _train(seed, settings, progress)
    validation = _validate(model, processor, seed, settings["validation"], progress)
    provenance = _provenance(seed, settings, losses, validation, time.monotonic() - started)
    _save(output_dir, model, processor, provenance)
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


def _save(output_dir: Path, model, processor, provenance: dict) -> None:
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}-", dir=output_dir.parent))
    try:
        model.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
        (unfinished / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
        unfinished.chmod(0o755)
        os.rename(unfinished, output_dir)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
