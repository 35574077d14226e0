"""
Recipes: YAML files whose keys are options of the training, and which may inherit from one another.

A recipe with `base: ../koniq/qwen2_5_vl_7b.yaml`, a path relative to itself, has every key of that file and its own.
An own key replaces the inherited value as a whole, also a mapping or a list. Bases may have bases.
"""

import argparse
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import yaml

RECIPES = Path(__file__).parents[1] / "recipes"
"""Folder of the packaged recipes and accelerate configurations."""

DEFAULT_RECIPE = "demo/tiny"
BASE = "base"
"""Key that names the recipe to inherit from."""

ENVIRONMENT = "env"
"""Key that holds environment variables, as in TRL's own configuration files."""

_LISTS = ("degradations", "rewards")  # YAML reads a list without brackets as a text


class RecipeFile(NamedTuple):
    """One file of a chain: its path and its own keys, without [`BASE`]."""

    path: Path
    keys: dict[str, Any]


def find_recipe(name: str | Path, folder: str = "") -> Path:
    """
    Find a configuration file.

    Args:
        name (`str` or `Path`):
            Path of a YAML file, or the name of a packaged one without its suffix, e.g. `koniq/qwen2_5_vl_7b`.
        folder (`str`, *optional*, defaults to `""`):
            Folder of the packaged files that `name` is relative to, e.g. `"accelerate"`.

    Returns:
        `Path`

    Raises:
        `FileNotFoundError`: There is neither.
    """
    if Path(name).is_file():
        return Path(name)
    packaged = RECIPES / folder / f"{name}.yaml"
    if packaged.is_file():
        return packaged
    known = [path.relative_to(RECIPES / folder).with_suffix("").as_posix() for path in packaged_files(folder)]
    near = get_close_matches(str(name), known, n=3)
    hint = f"; similar names: {', '.join(near)}" if near else ""
    raise FileNotFoundError(f"There is no recipe {name}: expected a file or the name of a packaged one{hint}.")


def packaged_files(folder: str = "") -> list[Path]:
    """The packaged YAML files below a folder of the recipes, sorted."""
    return sorted((RECIPES / folder).rglob("*.yaml"))


def recipe_parser() -> argparse.ArgumentParser:
    """Parser of the options that name recipes."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    group = parser.add_argument_group("Recipe")
    group.add_argument(
        "--config",
        metavar="NAME|FILE",
        help="Recipe: a YAML file whose keys are the options below, or the name of a packaged one, e.g. "
        f"koniq/qwen2_5_vl_7b. {DEFAULT_RECIPE} by default: the bundled policy on a synthetic set.",
    )
    group.add_argument(
        f"--{BASE}", metavar="NAME|FILE", help="Recipe that replaces the last one that the recipe inherits from."
    )
    return parser


def load_recipe(
    path: str | Path, options: Mapping[str, argparse.Action], *, base: str | Path | None = None
) -> dict[str, Any]:
    """
    Read a recipe with everything that it inherits, and check each file of the chain.

    Args:
        path (`str` or `Path`):
            YAML file.
        options (`Mapping[str, argparse.Action]`):
            Options of the training's parser, by name.
        base (`str` or `Path`, *optional*):
            Recipe that replaces the last one of the chain, so that a delta applies to another model or data set.

    Returns:
        `dict[str, Any]`: Value by key, the bases' keys first, without [`BASE`].

    Raises:
        `FileNotFoundError`: The recipe or a base does not exist.
        `ValueError`: A file is not a YAML mapping, has a key twice, an unknown key or a value that its option does not
        accept; a recipe inherits from itself; or `base` is given for a recipe without one.
    """
    chain = recipe_chain(path, base=base)
    for file in chain:
        _check_keys(file, options)
    return merge_chain(chain)


def merge_chain(chain: Sequence[RecipeFile]) -> dict[str, Any]:
    """Merge the keys of a chain: a recipe's value replaces that of its bases."""
    return {key: value for file in reversed(chain) for key, value in file.keys.items()}


def recipe_chain(path: str | Path, *, base: str | Path | None = None) -> list[RecipeFile]:
    """Read a recipe and its bases, the last base at the end, without checking keys; see [`load_recipe`]."""
    chain: list[RecipeFile] = []
    _follow(Path(path), chain)
    if base is None:
        return chain
    if len(chain) == 1:
        raise ValueError(f"--base {base} is given, but recipe {path} has no key `{BASE}` that it could replace.")
    del chain[-1]
    _follow(Path(base), chain)
    return chain


def _follow(path: Path, chain: list[RecipeFile]) -> None:
    """Append a file and its bases to a chain."""
    while True:
        keys, named = _read(path, chain[-1].path if chain else None)
        if any(path.resolve() == file.path.resolve() for file in chain):
            cycle = " -> ".join(str(file.path) for file in chain)
            raise ValueError(f"Recipe {path} inherits from itself: {cycle} -> {path}; remove one `{BASE}`.")
        chain.append(RecipeFile(path, keys))
        if named is None:
            return
        if not isinstance(named, str) or not named:
            raise ValueError(f"Recipe {path}: `{BASE}` is {named!r}; give the path of one recipe, relative to this.")
        path = path.parent / named


def _read(path: Path, heir: Path | None) -> tuple[dict[str, Any], Any]:
    """The keys of one file, and what it names as its base."""
    if not path.is_file():
        if heir is None:
            raise FileNotFoundError(f"There is no recipe {path}.")
        raise FileNotFoundError(
            f"Recipe {heir} inherits from {path}, which does not exist; `{BASE}` is relative to the recipe's folder."
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
    """YAML's safe loader that refuses a repeated key instead of dropping its first value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        merge = "tag:yaml.org,2002:merge"  # `<<: *anchor`, whose keys may be repeated
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != merge]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is repeated", node.start_mark)
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
        elif key in _LISTS and isinstance(value, str):
            raise ValueError(f"Recipe {file.path}: {key} is the text {value!r}; give a list: [{value}].")
        elif problem := _value_problem(value, options[key]):
            raise ValueError(f"Recipe {file.path}: {key} is {value!r}, {problem}.")


def _value_problem(value: Any, option: argparse.Action) -> str | None:
    """Say why an option does not accept a value, or `None`: a recipe means what its text would on the command line."""
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
