"""
How far a score depends on the batch that its image comes in, by precision.

    python benchmarks/scoring_determinism.py

The bundled policy scores pictures of six sizes alone and then in shuffled batches, padding included. For each batch
size: the share of the texts that are the same as alone, the mean and the largest difference of the scores, and the
share of the answers that were decoded a second time. `unguarded` is without that second time.
"""

import argparse
import random

import torch
import transformers
from PIL import Image

from q_hawkeye_trl.data.messages import with_images
from q_hawkeye_trl.demo.policy import demo_policy_path
from q_hawkeye_trl.demo.synthetic import content_seed, draw_sample
from q_hawkeye_trl.generation.engine import PolicyAnswers
from q_hawkeye_trl.scoring.policy import load_policy
from q_hawkeye_trl.text import parse_score, quality_messages

SIZES = ((112, 84), (84, 112), (112, 56), (56, 56), (84, 84), (300, 200))


def in_batches(answers: PolicyAnswers, rows: list[list[dict]], size: int) -> list[str]:
    """All texts in the order of the images; the batches are cut from a shuffled order."""
    order = list(range(len(rows)))
    random.Random(size).shuffle(order)
    texts: dict[int, list[str]] = {}
    for start in range(0, len(order), size):
        part = order[start : start + size]
        texts |= zip(part, answers([rows[number] for number in part]), strict=True)
    return [text for number in range(len(rows)) for text in texts[number]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rollouts", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    drawn = [Image.fromarray(draw_sample(content_seed("test", 1, index)).picture) for index in range(options.images)]
    images = [image.resize(SIZES[index % len(SIZES)]) for index, image in enumerate(drawn)]
    rows = [with_images({"prompt": quality_messages(), "images": [image]}) for image in images]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.device}, {len(images)} images")
    print(f"{'':<38} {'batch':>5} {'texts equal':>12} {'mean |Δ|':>9} {'max |Δ|':>8} {'again':>7}")
    for dtype, guarded in (("float32", True), ("float32", False), ("bfloat16", False)):
        model, processor = load_policy(demo_policy_path(), dtype=dtype, device=options.device)
        for rollouts in (None, options.rollouts):
            answers = PolicyAnswers(model, processor, rollouts=rollouts, max_new_tokens=64)
            if not guarded:
                answers.tolerance = 0.0
            alone = in_batches(answers, rows, 1)
            for size in (2, 16, 64):
                answers.decoded_again = 0
                batched = in_batches(answers, rows, size)
                equal = sum(left == right for left, right in zip(alone, batched, strict=True)) / len(alone)
                scores = [(parse_score(left), parse_score(right)) for left, right in zip(alone, batched, strict=True)]
                differences = [abs(left - right) for left, right in scores if left is not None and right is not None]
                name = f"{dtype}{'' if guarded or dtype != 'float32' else ' unguarded'}, "
                name += "greedy" if rollouts is None else f"{rollouts} rollouts"
                mean = sum(differences) / len(differences)
                again = answers.decoded_again / len(batched)
                print(f"{name:<38} {size:>5} {equal:>12.2%} {mean:>9.4f} {max(differences):>8.2f} {again:>7.2%}")


if __name__ == "__main__":
    main()
