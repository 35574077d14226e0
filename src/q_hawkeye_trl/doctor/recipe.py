"""The recipe: read as the training script reads it, by the script itself."""

import contextlib
import io
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .finding import Finding, ok, problem

SCRIPT = Path("examples") / "train_koniq.py"
_ON_CPU = ["--use_cpu", "true", "--bf16", "false"]


def find_script() -> Path | None:
    """The project's training script: of the working directory, or of the checkout that the package is run from."""
    for root in (Path(), Path(__file__).parents[3]):
        if (root / SCRIPT).is_file():
            return root / SCRIPT
    return None


def read_recipe(recipe: str | None, script: Path | None) -> tuple[list[Finding], tuple[Any, Any, Any] | None]:
    """
    Lets the training script read a recipe: its keys, its values and how they go together.

    Args:
        recipe (`str`, *optional*):
            YAML file; `None` where none is to be checked.
        script (`Path`, *optional*):
            The script, whose function `parse_arguments` is called. Its `main` is not.

    Returns:
        `tuple`: Findings, and the script's arguments, [`HawkeyeGRPOConfig`] and [`~trl.ModelConfig`] where the recipe
        can be read. What only the absence of a GPU forbids is reported and read for the CPU.
    """
    if recipe is None:
        return [], None
    if not Path(recipe).is_file():
        return [problem("recipe", f"there is no file {recipe}", "the project's recipes are in recipes/")], None
    if script is None:
        advice = f"run it from a checkout of the project, which has {SCRIPT}"
        return [problem("recipe", f"there is no {SCRIPT} whose options it could be held against", advice)], None
    parse = runpy.run_path(str(script), run_name="train_koniq")["parse_arguments"]
    arguments = ["--config", recipe]
    parsed, fault = _parse(parse, script, arguments)
    if fault is None:
        return [ok("recipe", f"{recipe}: every key is an option of {SCRIPT}, and they go together")], parsed
    parsed = _parse(parse, script, [*arguments, *_ON_CPU])[0]
    if parsed is None:
        return [problem("recipe", fault, "correct the recipe")], None
    parsed[1].use_cpu, parsed[1].bf16 = False, True  # as the recipe has it, for the other checks
    advice = "run it on a GPU; or, for a tiny model, pass --use_cpu true --bf16 false to the training"
    return [problem("recipe", f"it needs a GPU: {fault}", advice)], parsed


def _parse(parse: Any, script: Path, arguments: list[str]) -> tuple[tuple[Any, Any, Any] | None, str | None]:
    said = io.StringIO()
    try:
        with _command_line([str(script), *arguments]), contextlib.redirect_stderr(said):
            script_args, args, model_args, *_ = parse(arguments)
    except SystemExit:  # argparse has said why
        return None, (said.getvalue().strip().splitlines() or ["the script ended"])[-1]
    except (ValueError, OSError, TypeError) as error:
        return None, str(error)
    return (script_args, args, model_args), None


@contextlib.contextmanager
def _command_line(words: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, words
    try:
        yield
    finally:
        sys.argv = before
