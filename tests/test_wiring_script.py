"""The example scripts hand on what the user says, and their arms are what they are called."""

import dataclasses
import math
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image
from transformers import HfArgumentParser

import q_hawkeye_trl
from q_hawkeye_trl import HawkeyeGRPOConfig
from q_hawkeye_trl.demo import synthetic

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "train_koniq.py"
ARMS_SCRIPT = ROOT / "examples" / "compare_arms.py"
RECIPE = yaml.safe_load((ROOT / "recipes" / "demo" / "tiny.yaml").read_text())
COEFFICIENTS = ("uncertainty_alpha", "perception_gamma", "entropy_original_coef", "entropy_degraded_coef")


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


def test_rewards_are_on_the_scale_of_the_config():
    script = runpy.run_path(str(SCRIPT))
    arguments = script["ScriptArguments"](rewards=["accuracy", "format"])
    config = HawkeyeGRPOConfig(output_dir="unused", bf16=False, use_cpu=True, score_min=0.0, score_max=10.0)
    accuracy, _ = script["build_rewards"](arguments, config)
    completions = ["<think>good</think><answer>8.5</answer>", "<think>bad</think><answer>0</answer>"]
    # the mean opinion scores 8 and 0.3 lie outside of the default scale from 1 to 5
    assert accuracy(completions=completions, mos=[8.0, 0.3]) == pytest.approx([math.exp(-0.5 / 0.3), math.exp(-1)])


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


@pytest.fixture(scope="module")
def arms_script() -> dict:
    return runpy.run_path(str(ARMS_SCRIPT), run_name="compare_arms")


@pytest.mark.parametrize(
    ("arm", "off"),
    [("grpo", COEFFICIENTS), ("uncertainty", COEFFICIENTS[1:]), ("perception", COEFFICIENTS[:1]), ("both", ())],
)
def test_an_arm_turns_off_what_it_should_and_nothing_else(arms_script, tmp_path, arm, off):
    names = {field.name for field in dataclasses.fields(HawkeyeGRPOConfig)}
    of_recipe = {key: value for key, value in RECIPE.items() if key in names}
    parser = HfArgumentParser(HawkeyeGRPOConfig)
    parser.set_defaults(**of_recipe | {"output_dir": str(tmp_path), "use_cpu": True})
    for action in parser._actions:
        action.required = False
    (config,) = parser.parse_args_into_dataclasses(arms_script["ARMS"][arm])
    assert all(RECIPE[name] > 0 for name in COEFFICIENTS)
    for name in COEFFICIENTS:
        assert getattr(config, name) == (0.0 if name in off else RECIPE[name])
    assert config.uses_perception_terms == (arm in ("perception", "both"))


def test_the_arms_are_measured_on_seen_and_on_unseen_kinds(arms_script, tmp_path, monkeypatch):
    written = []

    def write(root, *, kinds=synthetic.SEEN_KINDS, seed=0, **sizes):
        written.append((Path(root).name, set(kinds), seed))
        if len(written) == 2:
            raise Stopped

    main = arms_script["main"]
    monkeypatch.setitem(main.__globals__, "write_synthetic_koniq", write)
    monkeypatch.setattr(sys, "argv", ["compare_arms.py", "--output_dir", str(tmp_path)])
    with pytest.raises(Stopped):
        main()
    (seen, seen_kinds, seen_seed), (unseen, unseen_kinds, unseen_seed) = written
    assert (seen, unseen) == ("seen", "unseen")
    assert unseen_kinds == set(synthetic.UNSEEN_KINDS)
    assert seen_kinds.isdisjoint(unseen_kinds)
    assert seen_seed != unseen_seed  # no picture content in both
