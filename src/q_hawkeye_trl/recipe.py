"""Recipes: YAML files whose every key is an option of the training script."""

import argparse
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from pathlib import Path

import yaml

LISTS = ("degradations", "rewards")
"""Keys that hold a list, which YAML takes for a text where the brackets are forgotten."""


def split_recipe(arguments: Sequence[str], default: str | Path) -> tuple[Path, list[str], bool]:
    """
    Takes `--config` out of a command line, in both of its forms.

    Args:
        arguments (`Sequence[str]`):
            Command line without the program's name.
        default (`str` or `Path`):
            Recipe where none is named.

    Returns:
        `tuple[Path, list[str], bool]`: The recipe, the other arguments, and whether the run is wholly the default one:
        neither a recipe nor an output folder is named.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    found, others = parser.parse_known_args(arguments)
    named_folder = any(argument.split("=")[0] == "--output_dir" for argument in others)
    return found.config or Path(default), others, found.config is None and not named_folder


def check_recipe(path: str | Path, options: Collection[str]) -> None:
    """
    Checks the keys of a recipe, before anything is built from it.

    Args:
        path (`str` or `Path`):
            YAML file.
        options (`Collection[str]`):
            Names that the script knows.

    Raises:
        `FileNotFoundError`: There is no such file.
        `ValueError`: The file is no YAML mapping, or has a key that is no option; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no recipe {path}; the project's own are in recipes/.")
    try:
        recipe = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"Recipe {path} is not YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"Recipe {path} holds no keys; expected lines like `learning_rate: 5.0e-6`.")
    for key in recipe:
        if key not in options and key != "env":  # TRL sets environment variables from `env`
            near = get_close_matches(str(key), options, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"Recipe {path} has the unknown key {key!r}{hint}")
        if key in LISTS and isinstance(recipe[key], str):
            raise ValueError(f"Recipe {path}: {key} is the text {recipe[key]!r}; give a list: [{recipe[key]}].")
