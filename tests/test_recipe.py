"""Recipes: what is inherited, what is refused, and that the command line and the card see the resolved one."""

import argparse
import json
import os
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from transformers.hf_argparser import string_to_bool

from q_hawkeye_trl.demo.synthetic import write_synthetic_koniq
from q_hawkeye_trl.train.arguments import parse_arguments
from q_hawkeye_trl.train.recipes import RECIPES, find_recipe, load_recipe, recipe_chain, recipe_parser

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "train_koniq.py"
PARSER = argparse.ArgumentParser()
for option, kind in (("learning_rate", float), ("beta", float), ("seed", int), ("output_dir", str), ("mode", str)):
    PARSER.add_argument(f"--{option}", type=kind, choices=["a", "b"] if option == "mode" else None)
for option in ("rewards", "degradations", "sizes"):
    PARSER.add_argument(f"--{option}", nargs="+", type=int if option == "sizes" else str)
PARSER.add_argument("--reward_parameters")
PARSER.add_argument("--bf16", type=string_to_bool, nargs="?", const=True)
OPTIONS = {action.dest: action for action in PARSER._actions}


def write(path: Path, **keys) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(keys, sort_keys=False))
    return path


@pytest.fixture
def chain(tmp_path) -> Path:
    """A recipe of three files in two folders."""
    write(tmp_path / "models" / "big.yaml", learning_rate=1e-6, beta=0.1, reward_parameters={"accuracy": {"tau": 0.3}})
    write(tmp_path / "models" / "small.yaml", base="big.yaml", beta=0.2, rewards=["accuracy", "format"])
    return write(tmp_path / "deltas" / "one.yaml", base="../models/small.yaml", reward_parameters={"rank": {}}, seed=3)


def test_a_delta_has_the_keys_of_its_bases_and_its_own(chain):
    assert load_recipe(chain, OPTIONS) == {
        "learning_rate": 1e-6,
        "beta": 0.2,
        "reward_parameters": {"rank": {}},  # replaced whole, not merged
        "rewards": ["accuracy", "format"],
        "seed": 3,
    }
    assert [file.path.name for file in recipe_chain(chain)] == ["one.yaml", "small.yaml", "big.yaml"]


def test_a_base_is_found_from_any_working_directory(chain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "deltas")
    assert load_recipe("one.yaml", OPTIONS)["learning_rate"] == 1e-6


def test_another_base_takes_the_place_of_the_last_one(chain, tmp_path):
    other = write(tmp_path / "other.yaml", base="root.yaml", learning_rate=9.0)
    write(tmp_path / "root.yaml", output_dir="runs/root", beta=5.0)
    assert load_recipe(chain, OPTIONS, base=other) == {
        "output_dir": "runs/root",
        "beta": 0.2,  # of small.yaml, which stays
        "learning_rate": 9.0,
        "rewards": ["accuracy", "format"],
        "reward_parameters": {"rank": {}},
        "seed": 3,
    }


def test_a_value_may_be_taken_back_to_none(tmp_path):
    write(tmp_path / "a.yaml", reward_parameters={"accuracy": {"tau": 0.3}})
    recipe = write(tmp_path / "b.yaml", base="a.yaml", reward_parameters=None)
    assert load_recipe(recipe, OPTIONS) == {"reward_parameters": None}


WRONG = {
    "missing base": ({"a": {"base": "nowhere/b.yaml"}}, FileNotFoundError, "a.yaml.*b.yaml"),
    "cycle": ({"a": {"base": "b.yaml"}, "b": {"base": "a.yaml"}}, ValueError, r"a.yaml -> .*b.yaml -> "),
    "itself": ({"a": {"base": "./a.yaml"}}, ValueError, "a.yaml -> "),
    "unknown key of the base": (
        {"a": {"base": "b.yaml", "seed": 1}, "b": {"learning_rat": 1}},
        ValueError,
        "b.yaml.*'learning_rat'.*'learning_rate'",
    ),
    "unknown key of the delta": ({"a": {"base": "b.yaml", "alpha": 1}, "b": {"seed": 1}}, ValueError, "a.yaml.*alpha"),
    "text for a list": ({"a": {"base": "b.yaml"}, "b": {"rewards": "rank"}}, ValueError, r"b.yaml.*rewards.*\[rank"),
    "two bases": ({"a": {"base": ["b.yaml", "c.yaml"]}}, ValueError, r"a.yaml.*base.*'b.yaml', 'c.yaml'"),
    "no mapping": ({"a": {"env": "X=1"}}, ValueError, "a.yaml.*env.*X=1"),
}


@pytest.mark.parametrize(("files", "error", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_named_with_its_file(tmp_path, files, error, message):
    for name, keys in files.items():
        write(tmp_path / f"{name}.yaml", **keys)
    with pytest.raises(error, match=message):
        load_recipe(tmp_path / "a.yaml", OPTIONS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nbeta: 2\nseed: 3\n", "the key 'seed' is repeated"),
        ("reward_parameters: {rank: {}, rank: {}}\n", "the key 'rank' is repeated"),
        ("- seed\n", "holds no keys"),
        ("", "holds no keys"),
        ("seed: [1\n", "is not YAML"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_recipe(path, OPTIONS)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("seed", 1.5, "int"),
        ("seed", "one", "int"),
        ("seed", True, "int"),
        ("beta", [0.1, 0.2], "float"),
        ("mode", "c", "one of a, b"),
        ("sizes", [1, "two"], "int"),
        ("bf16", "maybe", "string_to_bool"),
    ],
)
def test_a_value_that_the_command_line_would_not_take(tmp_path, key, value, expected):
    write(tmp_path / "base.yaml", **{key: value})
    recipe = write(tmp_path / "a.yaml", base="base.yaml", learning_rate=1)
    with pytest.raises(ValueError, match=f"base.yaml.*{key}.*{expected}"):
        load_recipe(recipe, OPTIONS)


@pytest.mark.parametrize(
    ("key", "value"),
    [("beta", 1), ("seed", 3), ("mode", "a"), ("sizes", [1, 2]), ("bf16", False), ("bf16", "no"), ("beta", "5e-6")],
)
def test_values_that_it_would_take(tmp_path, key, value):
    assert load_recipe(write(tmp_path / "a.yaml", **{key: value}), OPTIONS) == {key: value}


def test_anchors_of_yaml_stay_usable(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("reward_parameters:\n  rank: &r {sigma: 1}\n  margin: {<<: *r, sigma: 2}\n")
    assert load_recipe(path, OPTIONS)["reward_parameters"]["margin"] == {"sigma": 2}


def test_a_base_needs_a_recipe_that_has_one(tmp_path):
    recipe, other = write(tmp_path / "a.yaml", seed=1), write(tmp_path / "b.yaml", seed=2)
    with pytest.raises(ValueError, match=r"--base .*b.yaml is given, but recipe .*a.yaml has no key `base`"):
        load_recipe(recipe, OPTIONS, base=other)


@pytest.mark.parametrize("form", ["--config=a.yaml --base=b.yaml", "--base b.yaml --config a.yaml"])
def test_the_command_line_is_split(form):
    named, others = recipe_parser().parse_known_args([*form.split(), "--seed", "1"])
    assert (named.config, named.base) == ("a.yaml", "b.yaml")
    assert others == ["--seed", "1"]


def test_only_a_run_without_recipe_and_folder_is_the_default_one():
    on_a_cpu = ["--use_cpu", "true"]
    assert parse_arguments(on_a_cpu).is_default
    assert not parse_arguments(["--output_dir=x", *on_a_cpu]).is_default
    assert not parse_arguments(["--config", "demo/tiny", *on_a_cpu]).is_default


def test_a_packaged_recipe_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("koniq/qwen2_5_vl_7b") == RECIPES / "koniq" / "qwen2_5_vl_7b.yaml"
    assert find_recipe("zero3", "accelerate") == RECIPES / "accelerate" / "zero3.yaml"
    own = write(tmp_path / "demo" / "tiny", seed=1)  # a file goes before a name
    assert find_recipe("demo/tiny").samefile(own)
    with pytest.raises(FileNotFoundError, match=r"koniq/qwen2_5_vl_8b.*koniq/qwen2_5_vl_7b"):
        find_recipe("koniq/qwen2_5_vl_8b")


def test_the_command_line_goes_over_the_recipe_and_the_recipe_over_its_base(tmp_path, monkeypatch):
    monkeypatch.delenv("HAWKEYE_TEST_VARIABLE", raising=False)
    base = {"learning_rate": 1e-3, "beta": 0.5, "uncertainty_alpha": 3.0, "bf16": False, "use_cpu": True}
    write(tmp_path / "base.yaml", output_dir="unused", **base, env={"HAWKEYE_TEST_VARIABLE": 1})
    recipe = write(tmp_path / "a.yaml", base="base.yaml", beta=0.25, uncertainty_alpha=2.0)
    with monkeypatch.context() as patch:
        patch.setenv("HAWKEYE_TEST_VARIABLE", "0")
        _, args, _, is_default = parse_arguments(["--config", str(recipe), "--uncertainty_alpha", "1.5"])
        assert os.environ["HAWKEYE_TEST_VARIABLE"] == "1"
    assert (args.learning_rate, args.beta, args.uncertainty_alpha) == (1e-3, 0.25, 1.5)
    assert not is_default


def test_the_card_holds_the_resolved_recipe(tmp_path, monkeypatch):
    data = write_synthetic_koniq(tmp_path / "koniq", train=8, validation=2, test=4, progress=False)
    demo = ROOT / "recipes" / "demo" / "tiny.yaml"
    middle = write(tmp_path / "middle.yaml", base=str(demo), uncertainty_alpha=0.7, max_steps=1, validate=False)
    recipe = write(tmp_path / "a.yaml", base=middle.name, perception_gamma=0.04, num_generations=4)
    out = tmp_path / "run"
    options = ["--per_device_train_batch_size", "4", "--use_cpu", "true", "--held_out_images", "2", "--seed", "5"]
    monkeypatch.setattr(
        sys,
        "argv",
        [str(a) for a in (SCRIPT, "--config", recipe, "--data_dir", data, "--output_dir", out, *options)],
    )
    runpy.run_path(str(SCRIPT), run_name="__main__")
    card = (out / "README.md").read_text()
    shown = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    expected = {
        "perception_gamma": 0.04,  # of a.yaml
        "num_generations": 4,
        "uncertainty_alpha": 0.7,  # of middle.yaml
        "max_steps": 1,
        "entropy_original_coef": 0.03,  # of the demo's recipe
        "per_device_train_batch_size": 4,  # of the command line
        "seed": 5,
    }
    assert expected.items() <= shown.items()
    assert json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["perception/gamma"] == pytest.approx(0.04)
