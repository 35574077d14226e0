"""The documents: commands run or parse, snippets run, paths and links exist, every option is described."""

import contextlib
import dataclasses
import functools
import io
import itertools
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch.distributed.run
import typer.core
import typer.main
import yaml
from accelerate.commands.launch import launch_command_parser
from trl import GRPOConfig
from typer.testing import CliRunner

from docs_sandbox import ROOT, build_sandbox, review_pairs
from harness import build_trainer
from q_hawkeye_trl import HawkeyeGRPOConfig
from q_hawkeye_trl.cli import app
from q_hawkeye_trl.train.arguments import ScriptArguments, make_parser, recipe_parser
from q_hawkeye_trl.train.launcher import launch_parser
from q_hawkeye_trl.train.recipes import find_recipe
from tiny_models import tiny_dataset

DOCUMENTS = {path.name: path for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in DOCUMENTS.items()}
every_document = pytest.mark.parametrize("name", sorted(DOCUMENTS))

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)|<img[^>]*\bsrc=\"([^\"]+)\"")
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
OPTION = re.compile(r"(?<![\w-])--[a-zA-Z][\w-]*")

# Code in backticks is a path of the repository if it begins with one of its folders or ends like one of its files.
FOLDERS = (".ci", "benchmarks", "docs", "examples", "recipes", "src", "tests")
SUFFIXES = (".py", ".md", ".yaml", ".yml", ".toml", ".cfg", ".cff")
FILES = ("Makefile", "LICENSE", "constraints.txt")
# What a run writes, and files of other projects.
ELSEWHERE = ("runs/", "trl/", "transformers/", "torch/", "http://", "https://", "~", "/", "PATH", "$")


def fences(name: str, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(TEXTS[name]) if language in languages]


def inline_code(name: str) -> list[str]:
    """Code in backticks outside of blocks, without links to other sites, which name things there."""
    return INLINE.findall(re.sub(r"\[[^\]]*\]\(https?://[^)]*\)", "", FENCE.sub("", TEXTS[name])))


def table_codes(name: str) -> set[str]:
    """Code in backticks in the tables of a page."""
    return {code for line in TEXTS[name].splitlines() if line.startswith("|") for code in INLINE.findall(line)}


def bash_commands(name: str) -> list[str]:
    lines = "\n".join(fences(name, "bash", "sh", "shell")).replace("\\\n", " ").splitlines()
    return [line for line in lines if shlex.split(line, comments=True)]


# Paths


@every_document
def test_paths_exist(name):
    bases = (ROOT, DOCUMENTS[name].parent, ROOT / "src" / "q_hawkeye_trl", ROOT / "tests")
    missing = []
    for code in inline_code(name):
        path = re.sub(r"(::|#|:\d).*$", "", code)
        if " " in path or path.startswith(ELSEWHERE) or re.search(r"[<>{}=\"'(]|\.\.\.", path):
            continue
        is_path = path.split("/")[0] in FOLDERS or path.endswith(SUFFIXES) or path in FILES
        if is_path and not any(any(base.glob(path.rstrip("/"))) for base in bases):
            missing.append(path)
    assert not missing


@every_document
def test_links_lead_somewhere(name):
    links = [(link or image).split("#")[0] for link, image in LINK.findall(FENCE.sub("", TEXTS[name]))]
    folder = DOCUMENTS[name].parent
    assert not [link for link in links if link and not re.match(r"[a-z]+:", link) and not (folder / link).exists()]


@every_document
def test_trees_name_existing_files(name):
    """Blocks without a language are trees: one name per line, two spaces deeper than its folder, then what it is."""
    for tree in fences(name, ""):
        parents: list[str] = []
        for indent, entry in re.findall(r"^( *)([\w./-]+)(?:\s{2,}.*)?$", tree, re.MULTILINE):
            parents = [*parents[: len(indent) // 2], entry]
            assert entry.startswith("runs") or ROOT.joinpath(*parents).exists(), ROOT.joinpath(*parents)


@pytest.mark.parametrize(
    "test", sorted(set(re.findall(r"\b(?:(tests/\w+\.py)::)?(test_\w+)\b(?![./*])", str(TEXTS)))), ids=str
)
def test_named_tests_exist(test):
    files = [ROOT / test[0]] if test[0] else (ROOT / "tests").glob("test_*.py")
    assert any(f"def {test[1]}(" in path.read_text(encoding="utf-8") for path in files)


# Commands: every one is parsed


def click_command(words: list[str]) -> tuple[typer.core.TyperCommand, list[str]]:
    """The command of `q-hawkeye` that words name, and the words after it."""
    command = typer.main.get_command(app)
    while hasattr(command, "commands") and words:
        command, words = command.commands[words[0]], words[1:]
    return command, words


def options_of_command(command: typer.core.TyperCommand) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}


@functools.cache
def options_of_training() -> frozenset[str]:
    parsers = (make_parser(), recipe_parser(), launch_parser(), launch_command_parser())
    return frozenset(option for parser in parsers for option in parser._option_string_actions)


@functools.cache
def options_of_script(script: str) -> frozenset[str]:
    """The options that the help of a script lists."""
    output = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [script, "--help"]),
        mock.patch.object(sys, "path", [str((ROOT / script).parent), *sys.path]),
        mock.patch.dict(os.environ, COLUMNS="200"),
        contextlib.redirect_stdout(output),
        contextlib.suppress(SystemExit),
    ):
        runpy.run_path(str(ROOT / script), run_name="__main__")
    return frozenset(OPTION.findall(output.getvalue())) | {"--config"}  # which TrlParser takes before argparse


def check_options(words: list[str], known: set[str] | frozenset[str]) -> None:
    """Check the options of a command, and the recipes and configurations that it names."""
    unknown = {word.split("=")[0] for word in words if OPTION.match(word)} - known
    assert not unknown
    for option, value in itertools.pairwise(words):
        if option in ("--config", "--base"):
            find_recipe(value)
        elif option == "--accelerate_config":
            find_recipe(value, "accelerate")
        elif option == "--recipes":
            assert (ROOT / value).exists()


def check_script(words: list[str]) -> None:
    """Check a script or `-m module` with its options."""
    if words[:2] == ["-m", "pytest"]:
        assert all((ROOT / word.split("::")[0]).is_file() for word in words if word.startswith("tests/"))
    elif words[:2] == ["-m", "q_hawkeye_trl"]:
        check_command(["q-hawkeye", *words[2:]])
    elif words[:2] == ["-m", "torch.distributed.run"]:
        check_command(["torchrun", *words[2:]])
    elif words[0] != "-c":
        assert (ROOT / words[0]).is_file()
        check_options(words[1:], options_of_script(words[0]))


def check_command(words: list[str]) -> None:
    """Raise an error if a command or one of its options is unknown."""
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    program, *rest = words
    if program == "q-hawkeye" and rest[:1] and rest[0] in ("train", "ablate"):
        check_options(rest[1:], options_of_training() | {"--seeds", "--jobs", "--unseen", "--recipes", "--launch"})
    elif program == "q-hawkeye":
        command, rest = click_command(rest)
        check_options(rest, options_of_command(command) | {"--help", "--version"})
    elif program == "python":
        check_script(rest)
    elif program in ("accelerate", "torchrun"):
        parser = torch.distributed.run.get_args_parser() if program == "torchrun" else launch_command_parser()
        launched = parser.parse_args(rest[program == "accelerate" :])
        module = ["-m"] if launched.module else []
        check_script([*module, launched.training_script, *launched.training_script_args])
        assert not getattr(launched, "config_file", None) or (ROOT / launched.config_file).is_file()
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert {word for word in rest if "=" not in word} <= set(targets)
        for word in rest:
            if word.startswith("ARGS=--"):
                check_options(shlex.split(word.removeprefix("ARGS=")), options_of_training())
    else:
        assert program == "source" or shutil.which(program), program


def is_command(code: str) -> bool:
    """Whether code in the text is a command without placeholders such as FILE."""
    launched = code.startswith(("accelerate launch ", "torchrun ")) and re.search(r"\.py\b| -m ", code)
    return bool(launched or code.startswith(("q-hawkeye ", "make ", "python "))) and not re.search(
        r"…|\.\.\.|\b[A-Z]{1,9}\b(?!=)", code
    )


@every_document
def test_commands_are_known(name):
    for command in bash_commands(name) + [code for code in inline_code(name) if is_command(code)]:
        try:
            check_command(shlex.split(command, comments=True))
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{name}: {command}") from error


# Commands: those that need no GPU, download, server or real set also run

NOT_HERE = re.compile(r"Qwen/|https?://|--nnodes|recipes/koniq|koniq/|PATH/(?!koniq10k)|benchmarks/|-m pytest|ablat")
SMALL = ["--per_device_train_batch_size", "8", "--num_generations", "4", "--max_steps", "2"]
SMALL += ["--held_out_images", "6", "--validation_images", "4"]


def is_training(words: list[str]) -> bool:
    return (
        words[:2] == ["q-hawkeye", "train"] or words[0] in ("accelerate", "torchrun") or "torch.distributed" in words
    )


def runs_here(command: str, words: list[str]) -> bool:
    return words[0] in ("q-hawkeye", "python", "accelerate", "torchrun") and not NOT_HERE.search(command)


def run_small(words: list[str]) -> None:
    """Run a command in this process with fewer draws and short answers; a training in another one, with two steps."""
    for option in ("--out", "--json", "--html", "--markdown"):  # of an earlier command
        if option in words and Path(words[words.index(option) + 1]).is_file():
            os.unlink(words[words.index(option) + 1])
    if words[:2] == ["q-hawkeye", "review"]:
        review_pairs(Path(words[2]))
        return
    if is_training(words) or words[0] == "python":
        run_process(words)
        return
    command, _ = click_command(words[1:])
    small = {"--draws": "10", "--max-new-tokens": "24"}
    if "--scores" in words:
        del small["--max-new-tokens"]
    for option, value in small.items():
        words += [option, value] if option in options_of_command(command) and option not in words else []
    result = CliRunner().invoke(app, words[1:], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def run_process(words: list[str]) -> None:
    programs = {"q-hawkeye": ["q_hawkeye_trl"], "torchrun": ["torch.distributed.run"]}
    programs["accelerate"] = ["accelerate.commands.accelerate_cli"]
    line = [sys.executable, "-m", *programs[words[0]], *words[1:]] if words[0] in programs else words
    if words[0] == "python":
        line = [sys.executable, *words[1:]]
    elif words[0] == "accelerate":
        line[4:4] = ["--cpu", "--num_processes", "1"]
    if "train" in words or any(word.endswith("train_koniq.py") for word in words):
        line += SMALL + ([] if {"--data_dir", "--dataset"} & set(words) else ["--data_dir", "small"])
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]


def run_page(name: str, folder: Path, monkeypatch, *, trainings: bool) -> None:
    """Run the commands and snippets of a page in their order."""
    build_sandbox(name, folder)
    monkeypatch.chdir(folder)
    names: dict = {}
    for language, block in FENCE.findall(TEXTS[name]):
        if language == "python":
            if "trainer" in block and "trainer =" not in block:  # the page adds to a trainer of the reader
                options = {"save_strategy": "steps", "save_steps": 1}
                build_trainer(folder / "earlier", **options).train()
                names |= {"trainer": build_trainer(folder / "earlier", **options, max_steps=2)}
                names |= {"held_out": tiny_dataset(2, seed=1)}
            exec(compile(block, name, "exec"), names)
        for command in block.replace("\\\n", " ").splitlines() if language == "bash" else []:
            words = shlex.split(command, comments=True)
            if words and runs_here(command, words) and (trainings or not is_training(words)):
                try:
                    run_small(words)
                except Exception as error:
                    raise AssertionError(f"{name}: {command}") from error


def pages_with(*, trainings: bool) -> list[str]:
    pages = set()
    for name in DOCUMENTS:
        lines = [(line, shlex.split(line, comments=True)) for line in bash_commands(name)]
        here = [is_training(words) for line, words in lines if runs_here(line, words)]
        if any(here) if trainings else not all(here) or fences(name, "python"):
            pages.add(name)
    return sorted(pages)


@pytest.mark.parametrize("name", pages_with(trainings=False))
def test_page_runs(name, tmp_path, monkeypatch):
    run_page(name, tmp_path, monkeypatch, trainings=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", pages_with(trainings=True))
def test_page_runs_with_its_trainings(name, tmp_path, monkeypatch):
    run_page(name, tmp_path, monkeypatch, trainings=True)


@every_document
def test_yaml_blocks_are_recipes(name):
    for block in fences(name, "yaml"):
        keys = {f"--{key}" for key in yaml.safe_load(block)} - {"--env", "--base"}
        assert keys <= options_of_training()


# Everything is described

ALL_TEXT = "\n".join(TEXTS.values())


def all_commands(command: typer.core.TyperCommand, path: str = "q-hawkeye") -> dict[str, typer.core.TyperCommand]:
    if not hasattr(command, "commands"):
        return {path: command}
    return {
        key: leaf
        for name, each in command.commands.items()
        for key, leaf in all_commands(each, f"{path} {name}").items()
    }


@pytest.mark.parametrize(("path", "command"), all_commands(typer.main.get_command(app)).items())
def test_every_command_and_option_is_described(path, command):
    assert path in ALL_TEXT
    options = {parameter.opts[0] for parameter in command.params if parameter.opts[0].startswith("--")}
    assert sorted(options - set(OPTION.findall(ALL_TEXT))) == []


@pytest.mark.parametrize("arguments", [HawkeyeGRPOConfig, ScriptArguments])
def test_every_field_is_described(arguments):
    fields = {field.name for field in dataclasses.fields(arguments)} - {
        field.name for field in dataclasses.fields(GRPOConfig)
    }
    assert sorted(field for field in fields if not re.search(rf"\b{field}\b", ALL_TEXT)) == []
