"""Every recipe: parsed strictly and counted, its header complete, its command right, its memory the formula's."""

import dataclasses
import re
import shlex
from itertools import pairwise

import pytest
import yaml
from trl.scripts.vllm_serve import ScriptArguments as ServerArguments

from q_hawkeye_trl.demo.synthetic import UNSEEN_KINDS
from q_hawkeye_trl.memory import GIB, MODELS, estimate, setup_of
from q_hawkeye_trl.train.arguments import parse_arguments
from q_hawkeye_trl.train.recipes import find_recipe
from recipe_files import (
    ACCELERATE,
    FIELDS,
    FOLDER,
    LAUNCHERS,
    ROOT,
    TRAINING,
    header_of,
    name_of,
    own_keys,
    resolved,
    script_options,
)

ABLATIONS = [path for path in TRAINING if path.parent.name == "ablations"]
DEMO, SEVEN = FOLDER / "demo" / "tiny.yaml", FOLDER / "koniq" / "qwen2_5_vl_7b.yaml"
# What a CPU without the packages for GPUs needs to build the configuration.
ON_A_CPU = ["--bf16", "false", "--use_cpu", "true"]
TERMS = ("uncertainty_alpha", "perception_gamma", "entropy_original_coef", "entropy_degraded_coef")
each = pytest.mark.parametrize("path", TRAINING, ids=name_of)
each_ablation = pytest.mark.parametrize("path", ABLATIONS, ids=name_of)
each_file = pytest.mark.parametrize("path", [*TRAINING, *ACCELERATE, *LAUNCHERS], ids=name_of)


def parse(*arguments):
    """Script, trainer and model arguments of a command line."""
    return parse_arguments([str(argument) for argument in arguments])[:3]


def test_the_recipes_are_counted():
    folders = [path.parent.name for path in TRAINING]
    assert {name: folders.count(name) for name in folders} == {"ablations": 48, "demo": 1, "koniq": 9}
    assert len(ACCELERATE) == 8
    assert [path.name for path in LAUNCHERS] == ["multi_node.sbatch", "multi_node.sh"]


@each
def test_every_key_of_a_recipe_reaches_the_arguments(path, monkeypatch):
    monkeypatch.setenv("HAWKEYE", "")
    script, args, model = parse("--config", path, *ON_A_CPU)
    names = [{field.name for field in dataclasses.fields(part)} for part in (script, args, model)]
    replaced = {"bf16"}
    for key, value in resolved(path).items():
        (holder,) = (part for part, own in zip((script, args, model), names, strict=True) if key in own)
        if key == "lora_target_modules":  # TRL takes one name out of its list
            value = value[0]
        if key == "report_to":
            value = [] if value == "none" else value
        if key not in replaced:
            assert getattr(holder, key) == value, key


@each_file
def test_the_header_is_complete(path):
    header = header_of(path)
    assert header.what.endswith(".")
    assert tuple(header.fields) == FIELDS
    assert all(text for values in header.fields.values() for text in values)
    assert all(len(header.fields[name]) == 1 for name in FIELDS if name != "Command")
    (ran,) = header.fields["Ran"]
    for name in re.findall(r"(?:tests|docs|recipes)/[\w/.]+\w", f"{ran} {header.what} {header.fields['Memory'][0]}"):
        assert (ROOT / name).is_file(), name
    assert "not run" in ran or "docs/experiments.md" in ran or "tests/" in ran


def check_training_options(words: list[str]) -> None:
    options = {*script_options(), "config", "base", "accelerate_config", "num_processes"}
    for word in words:
        if word.startswith("--"):
            assert word.removeprefix("--") in options, word


@each_file
def test_the_commands_are_right(path):
    for command in header_of(path).fields["Command"]:
        words = shlex.split(command)
        while "=" in words[0]:  # environment
            words = words[1:]
        for word, value in pairwise(words):
            if word == "--config":
                find_recipe(value)
            elif word == "--accelerate_config":
                find_recipe(value, "accelerate")
        if words[:2] == ["q-hawkeye", "train"]:
            check_training_options(words[2:])
        elif words[0] in ("sbatch", "bash"):
            script = next(n for n, word in enumerate(words) if (ROOT / word).is_file())
            check_training_options(words[script + 1 :])
        elif words[0] == "trl":
            assert words[1] == "vllm-serve"
            options = {field.name for field in dataclasses.fields(ServerArguments)}
            assert {word[2:] for word in words if word.startswith("--")} <= options
        else:
            assert words[0] in ("export", "q-hawkeye"), command


@each
def test_the_command_names_the_recipe_itself(path):
    words = header_of(path).training_command
    if path == DEMO:
        assert "--config" not in words  # the default
    else:
        assert path.samefile(find_recipe(words[words.index("--config") + 1]))


def test_q_hawkeye_commands_of_headers_run(tmp_path, monkeypatch, capsys):
    """The commands that make the data of the mix, on small sets in the official layouts."""
    from iqa_layouts import write_images
    from iqa_sets import SETS, run_cli

    for name in ("koniq10k", "kadid10k"):
        SETS[name][0](tmp_path / "PATH" / name)
    kadid = tmp_path / "PATH" / "kadid10k" / "images"
    write_images(kadid, sorted(path.name for path in kadid.iterdir()), first=3000)
    monkeypatch.chdir(tmp_path)
    commands = header_of(FOLDER / "koniq" / "qwen2_5_vl_7b_mix.yaml").fields["Command"]
    commands = [shlex.split(command)[1:] for command in commands if not command.startswith("q-hawkeye train")]
    assert [words[0] for words in commands] == ["prepare", "prepare", "prepare", "pair"]
    for words in commands:
        status, _, error = run_cli(monkeypatch, capsys, *words)
        assert status == 0, f"{words}\n{error}"
    from datasets import load_from_disk

    made = load_from_disk("data/pairs")
    assert {"train", "test"} <= set(made)
    assert "degraded_image" in made["train"].column_names
    assert set(made["train"]["dataset"]) == {"koniq10k", "kadid10k"}


@each_file
def test_the_memory_is_that_of_the_formula(path):
    header, config = header_of(path), path
    words, (memory,) = header.training_command, header.fields["Memory"]
    if "by the formula" not in memory:
        assert path.parent.name in ("ablations", "demo") or path in LAUNCHERS or "cpu" in path.name
        return
    config = find_recipe(words[words.index("--accelerate_config") + 1], "accelerate")
    recipe = resolved(find_recipe(words[words.index("--config") + 1]))
    accelerate = yaml.safe_load(config.read_text())
    needed = estimate(MODELS[recipe["model_name_or_path"]], setup_of(recipe, accelerate))
    assert memory.startswith(f"{needed.total / GIB:.1f} GiB a GPU by the formula")
    (card,) = re.findall(r"of (\d+) GB", header.fields["Hardware"][0])
    assert needed.total < 0.9 * int(card) * 1e9  # a tenth stays free
    host = re.findall(r"(\d+) GiB of the host", memory)
    assert host == ([f"{needed.host * accelerate['num_processes'] / GIB:.0f}"] if needed.host else [])


@each
def test_every_recipe_of_a_gpu_states_its_memory(path):
    assert ("by the formula" in header_of(path).fields["Memory"][0]) == ("model_name_or_path" in resolved(path))


# Ablations


@each_ablation
def test_an_ablation_is_a_small_delta_over_the_one_base(path):
    own = own_keys(path)
    assert own.pop("base") == "../demo/tiny.yaml"
    assert len(own) <= 10
    assert not {"model_name_or_path", "output_dir", "learning_rate", "max_steps", "seed"} & set(own)


# Those that say again what the base has: the whole method, and the point of each sweep where the base stands.
SAME_AS_BASE = {"full", "alpha_1", "reward_accuracy", "rollouts_8"}


@each_ablation
def test_an_ablation_changes_what_it_says_and_nothing_else(path):
    script, args, _ = parse("--config", path, *ON_A_CPU)
    base_script, base, _ = parse("--config", DEMO, *ON_A_CPU)
    changed = {
        field.name
        for one, other in ((script, base_script), (args, base))
        for field in dataclasses.fields(one)
        if getattr(one, field.name) != getattr(other, field.name)
    }
    derived = {"reward_parameters", "logging_dir", "generation_batch_size"}
    assert changed <= set(own_keys(path)) | derived
    assert (changed - derived == set()) == (path.stem in SAME_AS_BASE)


@each_ablation
def test_an_ablation_applies_to_the_7b(path):
    own = own_keys(path)
    own.pop("base")
    batch = max(4, own.get("num_generations", 4))  # as the headers of rollouts_… say
    options = ["--config", path, "--base", SEVEN, "--per_device_train_batch_size", batch]
    script, args, model = parse(*options, *ON_A_CPU)
    assert model.model_name_or_path == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert args.learning_rate == 5e-6
    for key, value in own.items():
        (found,) = [getattr(part, key) for part in (script, args) if hasattr(part, key)]
        assert found == value


@pytest.mark.parametrize(
    ("name", "off"),
    [
        ("grpo", TERMS),
        ("uncertainty", TERMS[1:]),
        ("perception", TERMS[:1]),
        ("full", ()),
        ("release_as_run", TERMS[1:]),
        ("entropies_none", TERMS[2:]),
        ("entropies_only", TERMS[1:2]),
        ("entropy_original", TERMS[3:]),
        ("entropy_degraded", TERMS[2:3]),
        ("release_as_written", TERMS[3:]),
    ],
)
def test_a_term_is_off_where_the_name_says_so(name, off):
    _, args, _ = parse("--config", FOLDER / "ablations" / f"{name}.yaml", *ON_A_CPU)
    assert [term for term in TERMS if getattr(args, term) == 0] == list(off)
    assert args.uses_perception_terms == any(term not in off for term in TERMS[1:])


def test_the_release_as_it_was_written_and_as_it_ran():
    """docs/method.md: the release's flags in ours."""
    script, written, _ = parse("--config", FOLDER / "ablations" / "release_as_written.yaml", *ON_A_CPU)
    assert script.rewards == ["accuracy", "format", "repetition"]
    assert (written.uncertainty_alpha, written.uncertainty_unparsed) == (0.2, "exclude")
    assert (written.perception_gamma, written.perception_gamma_zero_epoch) == (1e-4, 5)
    assert (written.perception_gradient, written.entropy_estimator) == ("original", "sampled")
    assert (written.entropy_original_coef, written.entropy_degraded_coef) == (1e-3, 0)
    script, ran, _ = parse("--config", FOLDER / "ablations" / "release_as_run.yaml", *ON_A_CPU)
    assert script.rewards == ["accuracy", "format", "repetition"]
    assert (ran.uncertainty_alpha, ran.uncertainty_unparsed) == (0.2, "exclude")
    assert not ran.uses_perception_terms


@pytest.mark.parametrize("path", [DEMO, *ABLATIONS], ids=name_of)
def test_no_recipe_of_the_synthetic_set_shows_the_kinds_kept_unseen(path):
    kinds = {part.partition("@")[0] for name in resolved(path)["degradations"] for part in name.split("+")}
    assert kinds
    assert kinds.isdisjoint(UNSEEN_KINDS)


def test_sweeps_sweep():
    """The number in a name is the number in the file."""
    keys = {"alpha": "uncertainty_alpha", "gamma": "perception_gamma", "rollouts": "num_generations"}
    keys |= {"eta": "entropy_degraded_coef"}
    seen = {key: [] for key in keys}
    for path in ABLATIONS:
        kind, _, number = path.stem.rpartition("_")
        if kind in keys and re.fullmatch(r"[\d.]+", number):
            assert resolved(path)[keys[kind]] == float(number)
            seen[kind].append(float(number))
    assert sorted(seen["alpha"]) == [0.2, 1, 2, 5]
    assert sorted(seen["rollouts"]) == [2, 4, 8, 16]
    assert len(seen["gamma"]) == len(seen["eta"]) == 4
