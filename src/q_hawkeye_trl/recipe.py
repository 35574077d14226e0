"""
Recipes: YAML files whose every key is an option of the training script, and which may inherit from one another.

A recipe that begins with `base: ../koniq/qwen2_5_vl_7b.yaml` has every key of that file, which it names relative to
itself, and then its own keys. A key of its own replaces the inherited one whole, mappings and lists too. Bases may
have bases.
"""

import argparse
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import yaml

BASE = "base"
"""The key that names the recipe to inherit from."""

ENVIRONMENT = "env"
"""The key that holds environment variables, as with TRL's own scripts."""

LISTS = ("degradations", "rewards")
"""Keys that hold a list, which YAML takes for a text where the brackets are forgotten."""


class RecipeChoice(NamedTuple):
    """
    What a command line says about recipes.

    Args:
        recipe (`Path`):
            The recipe.
        base (`Path`, *optional*):
            Recipe that takes the place of the last one that `recipe` inherits from.
        arguments (`list[str]`):
            The other arguments.
        is_default (`bool`):
            Whether the run is wholly the default one: neither a recipe nor an output folder is named.
    """

    recipe: Path
    base: Path | None
    arguments: list[str]
    is_default: bool


class RecipeFile(NamedTuple):
    """One file of a chain: its path and its own keys, without [`BASE`]."""

    path: Path
    keys: dict[str, Any]


def split_recipe(arguments: Sequence[str], default: str | Path) -> RecipeChoice:
    """
    Takes `--config` and `--base` out of a command line, in both of their forms.

    Args:
        arguments (`Sequence[str]`):
            Command line without the program's name.
        default (`str` or `Path`):
            Recipe where none is named.

    Returns:
        [`RecipeChoice`]
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument(f"--{BASE}", type=Path)
    found, others = parser.parse_known_args(arguments)
    named_folder = any(argument.split("=")[0] == "--output_dir" for argument in others)
    return RecipeChoice(found.config or Path(default), found.base, others, found.config is None and not named_folder)


def load_recipe(
    path: str | Path, options: Mapping[str, argparse.Action], *, base: str | Path | None = None
) -> dict[str, Any]:
    """
    Reads a recipe with all that it inherits, and checks every file of the chain before anything is built from it.

    Args:
        path (`str` or `Path`):
            YAML file.
        options (`Mapping[str, argparse.Action]`):
            Options of the script's parser, by name.
        base (`str` or `Path`, *optional*):
            Recipe that takes the place of the last one of the chain, so that a delta applies to another model or to
            other data.

    Returns:
        `dict[str, Any]`: Value by key, the bases' first, without [`BASE`].

    Raises:
        `FileNotFoundError`: The recipe or a base does not exist.
        `ValueError`: A file is no YAML mapping, has a key twice, a key that is no option or a value that its option
        would not take, a recipe inherits from itself, or `base` is given for a recipe without one; the message names
        the file.
    """
    chain = recipe_chain(path, base=base)
    for file in chain:
        _check_keys(file, options)
    return merge_chain(chain)


def merge_chain(chain: Sequence[RecipeFile]) -> dict[str, Any]:
    """
    Puts the keys of a chain together.

    Args:
        chain (`Sequence[RecipeFile]`):
            As [`recipe_chain`] returns it.

    Returns:
        `dict[str, Any]`: Value by key, the bases' keys first; a recipe's own value replaces its bases'.
    """
    return {key: value for file in reversed(chain) for key, value in file.keys.items()}


def recipe_chain(path: str | Path, *, base: str | Path | None = None) -> list[RecipeFile]:
    """
    Reads a recipe and those that it inherits from; arguments and errors as in [`load_recipe`], keys are not checked.

    Returns:
        `list[RecipeFile]`: The recipe first, its last base at the end.
    """
    chain: list[RecipeFile] = []
    _follow(Path(path), chain)
    if base is None:
        return chain
    if len(chain) == 1:
        raise ValueError(f"--base {base} is given, but recipe {path} has no key `{BASE}` whose place it could take.")
    del chain[-1]
    _follow(Path(base), chain)
    return chain


def _follow(path: Path, chain: list[RecipeFile]) -> None:
    """Appends a file and its bases to a chain."""
    while True:
        keys, named = _read(path, chain[-1].path if chain else None)
        if any(path.resolve() == file.path.resolve() for file in chain):
            way = " -> ".join(str(file.path) for file in chain)
            raise ValueError(f"Recipe {path} inherits from itself: {way} -> {path}; take out one `{BASE}`.")
        chain.append(RecipeFile(path, keys))
        if named is None:
            return
        if not isinstance(named, str) or not named:
            raise ValueError(f"Recipe {path}: `{BASE}` is {named!r}; give the path of one recipe, relative to this.")
        path = path.parent / named


def _read(path: Path, heir: Path | None) -> tuple[dict[str, Any], Any]:
    """The keys of one file and what it names as its base."""
    if not path.is_file():
        if heir is None:
            raise FileNotFoundError(f"There is no recipe {path}; the project's own are in recipes/.")
        raise FileNotFoundError(
            f"Recipe {heir} inherits from {path}, which does not exist; `{BASE}` counts from the recipe's own folder."
        )
    try:
        recipe = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"Recipe {path} is not YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"Recipe {path} holds no keys; expected lines like `learning_rate: 5.0e-6`.")
    named = recipe.pop(BASE) if BASE in recipe else None
    return recipe, named


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, which lets no key stand twice: the first value would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        merge = "tag:yaml.org,2002:merge"  # `<<: *anchor`, whose keys may be repeated
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != merge]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _check_keys(file: RecipeFile, options: Mapping[str, argparse.Action]) -> None:
    for key, value in file.keys.items():
        if key == ENVIRONMENT:
            if not isinstance(value, dict):
                raise ValueError(f"Recipe {file.path}: env is {value!r}; give a mapping of variables to values.")
        elif key not in options:
            near = get_close_matches(str(key), options, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"Recipe {file.path} has the unknown key {key!r}{hint}")
        elif key in LISTS and isinstance(value, str):
            raise ValueError(f"Recipe {file.path}: {key} is the text {value!r}; give a list: [{value}].")
        elif problem := _value_problem(value, options[key]):
            raise ValueError(f"Recipe {file.path}: {key} is {value!r}, {problem}.")


def _value_problem(value: Any, option: argparse.Action) -> str | None:
    """Says why an option would not take a value, or `None`: a recipe means what its text would on the command line."""
    if value is None or isinstance(value, dict):
        return None
    is_list = option.nargs in ("+", "*")
    for part in value if is_list and isinstance(value, list) else [value]:
        if option.choices is not None and part not in option.choices:
            return f"expected one of {', '.join(map(str, option.choices))}"
        try:
            if callable(option.type):
                option.type(str(part))
        except (ValueError, TypeError, argparse.ArgumentTypeError):
            return f"expected {'values' if is_list else 'a value'} of type {getattr(option.type, '__name__', 'text')}"
    return None
