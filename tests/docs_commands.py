"""The commands of the documents: parsed by their own parsers, and run with tiny data."""

import contextlib
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

import torch.distributed.run
import typer.core
import typer.main
from accelerate.commands.launch import launch_command_parser
from typer.testing import CliRunner

from docs_sandbox import ROOT, review_pairs
from q_hawkeye_trl.cli import app
from q_hawkeye_trl.train.ablation_runs import parse_ablation_arguments
from q_hawkeye_trl.train.arguments import make_parser, recipe_parser
from q_hawkeye_trl.train.launcher import launch_parser
from q_hawkeye_trl.train.recipes import find_recipe

OPTION = re.compile(r"(?<![\w-])--[a-zA-Z][\w-]*")

# Needs a GPU, a download, a server, a real set, hours, or tests that run anyway.
NOT_HERE = re.compile(r"Qwen/|https?://|--nnodes|koniq/|PATH/(?!koniq10k)|benchmarks/|-m pytest|ablat")
SMALL = {"--draws": "10", "--max-new-tokens": "24"}
SMALL_TRAINING = ["--per_device_train_batch_size", "8", "--num_generations", "4", "--max_steps", "2"]
SMALL_TRAINING += ["--held_out_images", "6", "--validation_images", "4"]


# Parsing


def leaf_commands(command: typer.core.TyperCommand, path: str = "q-hawkeye") -> dict[str, typer.core.TyperCommand]:
    """All commands without subcommands, by their words."""
    if not hasattr(command, "commands"):
        return {path: command}
    found = (leaf_commands(each, f"{path} {name}") for name, each in command.commands.items())
    return {words: leaf for leaves in found for words, leaf in leaves.items()}


COMMANDS = leaf_commands(typer.main.get_command(app))


def options_of_command(words: list[str]) -> set[str]:
    """The options of the command of `q-hawkeye` that words begin with."""
    (path,) = [path for path in COMMANDS if words[: len(path.split())] == path.split()] or ["q-hawkeye"]
    if path == "q-hawkeye":
        return {"--version", "--help"}
    if path == "q-hawkeye train":
        return set(options_of_training())
    if path == "q-hawkeye ablate":
        return options_of_ablation() | options_of_training()
    options = {option for parameter in COMMANDS[path].params for option in parameter.opts + parameter.secondary_opts}
    return options | {"--help"}


@functools.cache
def options_of_training() -> frozenset[str]:
    parsers = (make_parser(), recipe_parser(), launch_parser(), launch_command_parser())
    return frozenset(option for parser in parsers for option in parser._option_string_actions)


def options_of_ablation() -> set[str]:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        parse_ablation_arguments(["--help"])
    return set(OPTION.findall(output.getvalue()))


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
    return frozenset(OPTION.findall(output.getvalue())) | {"--config"}  # which TrlParser reads before argparse


def check_options(words: list[str], known: set[str] | frozenset[str]) -> None:
    """Check the options of a command, and the recipes that it names."""
    unknown = {word.split("=")[0] for word in words if OPTION.match(word)} - known
    assert not unknown
    for option, value in itertools.pairwise(words):
        if option in ("--config", "--base"):
            find_recipe(value)
        elif option == "--accelerate_config":
            find_recipe(value, "accelerate")


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
    """Raise an error if a command, one of its options or a named file is unknown."""
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    program, *rest = words
    if program == "q-hawkeye":
        check_options(rest, options_of_command(words))
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


# Running


def is_training(words: list[str]) -> bool:
    """Whether a command trains, or launches several processes: it takes long."""
    return (
        words[:2] == ["q-hawkeye", "train"] or words[0] in ("accelerate", "torchrun") or "torch.distributed" in words
    )


def runs_here(command: str) -> bool:
    words = shlex.split(command, comments=True)
    return words[0] in ("q-hawkeye", "python", "accelerate", "torchrun") and not NOT_HERE.search(command)


def run_small(words: list[str]) -> None:
    """Run a command with fewer draws, short answers and few steps."""
    for option in ("--out", "--json", "--html", "--markdown"):  # of an earlier command
        if option in words and Path(words[words.index(option) + 1]).is_file():
            os.unlink(words[words.index(option) + 1])
    if words[:2] == ["q-hawkeye", "review"]:  # a server
        review_pairs(Path(words[2]))
    elif is_training(words) or words[0] == "python":
        _run_process(words)
    else:
        known = options_of_command(words) - ({"--max-new-tokens"} if "--scores" in words else set())
        added = [word for option in SMALL if option in known for word in (option, SMALL[option])]
        result = CliRunner().invoke(app, [*words[1:], *added], catch_exceptions=False)
        assert result.exit_code == 0, result.output


def _run_process(words: list[str]) -> None:
    programs = {"q-hawkeye": ["-m", "q_hawkeye_trl"], "torchrun": ["-m", "torch.distributed.run"], "python": []}
    programs["accelerate"] = ["-m", "accelerate.commands.accelerate_cli"]
    line = [sys.executable, *programs[words[0]], *words[1:]]
    if words[0] == "accelerate":
        line[4:4] = ["--cpu", "--num_processes", "1"]
    if words[:2] == ["q-hawkeye", "train"] or any(word.endswith("train_koniq.py") for word in words):
        line += SMALL_TRAINING + ([] if {"--data_dir", "--dataset"} & set(words) else ["--data_dir", "small"])
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
