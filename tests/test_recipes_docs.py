"""docs/recipes.md: its tables are the files, its numbers the formula's, its commands are accepted."""

import argparse
import re
import runpy
import shlex
from itertools import zip_longest
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser

from q_hawkeye_trl.memory import GIB, MODELS, Setup, estimate, setup_of
from q_hawkeye_trl.train.recipes import load_recipe
from recipe_files import (
    ACCELERATE,
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
from test_docs import FENCE

PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")


def rows(title: str) -> list[list[str]]:
    """Cells of the first table of a section, without its head."""
    section = PAGE[PAGE.index(f"\n## {title}\n") :]
    lines = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE).group().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def first_sentence(path: Path) -> str:
    return header_of(path).what.split(". ")[0].rstrip(".").replace(" (docs/method.md lists them)", "")


def test_the_table_for_accelerate_is_the_folder():
    files = [*ACCELERATE, *LAUNCHERS]
    assert rows("For accelerate") == [[f"`recipes/{name_of(path)}`", first_sentence(path)] for path in files]


def test_the_table_of_koniq_is_the_folder():
    expected = []
    for path in TRAINING:
        if path.parent.name == "koniq":
            fields = header_of(path).fields
            memory = fields["Memory"][0].split(" a GPU")[0]
            expected.append([f"`recipes/{name_of(path)}`", first_sentence(path), fields["Hardware"][0], memory])
    assert rows("On KonIQ-10k") == expected


def test_the_table_of_ablations_says_what_each_changes():
    paths = [path for path in TRAINING if path.parent.name == "ablations"]
    table = dict(rows("Ablations"))
    assert list(table) == [f"`{path.stem}`" for path in paths]
    for path in paths:
        own = own_keys(path)
        own.pop("base")
        if own:
            assert yaml.safe_load("{" + table[f"`{path.stem}`"].strip("`") + "}") == own, path.name
        else:
            assert table[f"`{path.stem}`"] == "nothing"


def test_every_recipe_stands_on_the_page():
    named = set(re.findall(r"`(?:recipes/)?([\w./]+)`", PAGE))
    for path in (*TRAINING, *ACCELERATE, *LAUNCHERS):
        assert name_of(path) in named or path.stem in named or f"recipes/{name_of(path)}" in PAGE, path


def test_the_table_of_memory_is_the_formula():
    section = PAGE[PAGE.index("in GiB a GPU:") :]
    lines = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE).group().splitlines()
    heads = [re.fullmatch(r"(\S+), (\d) GPUs", cell.strip()).groups() for cell in lines[0].strip("|").split("|")[1:]]
    models = {name.split("/")[1].removesuffix("-Instruct"): shape for name, shape in MODELS.items()}
    assert {name for name, _ in heads} == set(models)
    release = resolved(FOLDER / "koniq" / "qwen2_5_vl_7b.yaml")
    for line in lines[2:]:
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        config = yaml.safe_load((FOLDER / "accelerate" / f"{name}.yaml").read_text())
        for (model, devices), cell in zip(heads, cells, strict=True):
            setup = setup_of(release, config | {"num_processes": int(devices)})
            assert f"{estimate(models[model], setup).total / GIB:.1f}" == cell, (name, model, devices)


SEVEN = MODELS["Qwen/Qwen2.5-VL-7B-Instruct"]
P, T, N = SEVEN.parameters, SEVEN.parameters, 4


@pytest.mark.parametrize(
    ("setup", "expected"),
    [
        (Setup(), 2 * P + 2 * T + 4 * T),
        (Setup(dtype_bytes=4), 16 * T),
        (Setup(sharding="ddp"), 2 * P + 2 * T + 4 * T + 2 * T),
        (Setup(sharding="zero1", devices=N), 2 * P + 2 * T + 16 * T / N),
        (Setup(sharding="zero2", devices=N), 2 * P + 2 * T / N + 16 * T / N),
        (Setup(sharding="zero3", devices=N), (2 * P + 16 * T) / N),
        (Setup(sharding="zero3_offload", devices=N), 0),
        (Setup(sharding="fsdp2", devices=N), 16 * T / N),
    ],
)
def test_the_formulas_of_the_states_on_the_page(setup, expected):
    memory = estimate(SEVEN, setup)
    assert memory.weights + memory.gradients + memory.optimizer == pytest.approx(expected)
    if setup.sharding == "zero3_offload":
        assert memory.host == 18 * T / N
    with_reference = estimate(SEVEN, Setup(**{**vars(setup), "reference": True}))
    sharded = setup.sharding in ("zero3", "fsdp2")
    if setup.dtype_bytes == 2 and setup.sharding != "zero3_offload":
        assert with_reference.reference == 2 * P / (N if sharded else 1)


def test_the_snippet_of_memory_runs(capsys):
    (block,) = [body for language, body in FENCE.findall(PAGE) if language == "python"]
    exec(compile(block, "docs/recipes.md", "exec"), {})
    assert re.fullmatch(r"35\.\d GiB, of which activations 8\.\d\n", capsys.readouterr().out)


def test_the_example_of_inheritance_is_a_recipe(tmp_path):
    (block,) = [body for language, body in FENCE.findall(PAGE) if language == "yaml"]
    path = tmp_path / "mine.yaml"
    path.write_text(block.replace("qwen2_5_vl_7b.yaml", str(FOLDER / "koniq" / "qwen2_5_vl_7b.yaml")))
    recipe = load_recipe(path, script_options())
    assert recipe["learning_rate"] == 1e-6
    assert recipe["reward_parameters"] == {"accuracy": {"tau": 0.5}}
    assert recipe["beta"] == 0.04


COMMANDS = [
    shlex.split(line) for language, body in FENCE.findall(PAGE) if language == "bash" for line in body.splitlines()
]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words)[:60])
def test_the_commands_are_accepted(words, monkeypatch):
    options = {*script_options(), "config", "base"}
    if words[:2] == ["accelerate", "launch"]:
        parsed = launch_command_parser().parse_args(words[2:])
        further = parsed.training_script_args
        assert parsed.config_file is None or (ROOT / parsed.config_file).is_file()
    else:
        assert words[:2] == ["python", "examples/run_ablations.py"]
        monkeypatch.setattr("sys.argv", words[1:])
        args, further = runpy.run_path(str(ROOT / words[1]))["parse_arguments"]()
        assert isinstance(args, argparse.Namespace)
        assert all((ROOT / path).is_file() for path in args.recipes.values())
    for word, value in zip_longest(further, further[1:], fillvalue=""):
        if word.startswith("--"):
            assert word.removeprefix("--") in options
        if word in ("--config", "--base"):
            assert (ROOT / value).is_file()
