"""The training script hands on what the user says."""

import runpy
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

import q_hawkeye_trl
from q_hawkeye_trl.demo import synthetic

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "train_koniq.py"
RECIPE = yaml.safe_load((ROOT / "recipes" / "demo" / "tiny.yaml").read_text())


class Stopped(Exception):
    """Raised where a script would begin its long work."""


@pytest.fixture
def built(tmp_path, monkeypatch):
    """Runs the training script up to its trainer; gives what that would be built with."""
    folder = synthetic.write_synthetic_koniq(tmp_path / "koniq", train=2, validation=1, test=1, progress=False)

    def build(*arguments: str) -> dict:
        seen = {}

        def trainer(**options):
            seen.update(options)
            raise Stopped

        monkeypatch.setattr(q_hawkeye_trl, "HawkeyeGRPOTrainer", trainer)
        fixed = ["--data_dir", folder, "--output_dir", tmp_path / "run", "--use_cpu", "true"]
        monkeypatch.setattr(sys, "argv", [str(argument) for argument in (SCRIPT, *fixed, *arguments)])
        with pytest.raises(Stopped):
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return seen

    return build


@pytest.mark.parametrize("max_pixels", [None, 4000])
def test_max_pixels_reaches_the_processor(built, max_pixels):
    arguments = () if max_pixels is None else ("--max_pixels", str(max_pixels))
    processor = built(*arguments)["processing_class"].image_processor
    grid = processor(images=[Image.new("RGB", (112, 84))], return_tensors="pt")["image_grid_thw"][0]
    pixels = int(grid.prod()) * processor.patch_size**2
    assert pixels == 112 * 84 if max_pixels is None else pixels <= max_pixels


def test_the_demo_recipe_never_shows_the_kinds_kept_unseen():
    kinds = {name.partition("@")[0] for name in RECIPE["degradations"]}
    assert kinds
    assert kinds.isdisjoint(synthetic.UNSEEN_KINDS)
    assert set(synthetic.SEEN_KINDS).isdisjoint(synthetic.UNSEEN_KINDS)
