"""The files in recipes/: which there are, what their headers say, and the training script's own reading of them."""

import argparse
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from q_hawkeye_trl.train.arguments import make_parser, options_of
from q_hawkeye_trl.train.recipes import load_recipe

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "train_koniq.py"
FOLDER = ROOT / "recipes"
TRAINING = sorted(path for path in FOLDER.rglob("*.yaml") if path.parent.name != "accelerate")
ACCELERATE = sorted((FOLDER / "accelerate").glob("*.yaml"))
LAUNCHERS = sorted(path for path in (FOLDER / "accelerate").iterdir() if path.suffix != ".yaml")
FIELDS = ("Paper", "Command", "Hardware", "Memory", "Ran")


def name_of(path: Path) -> str:
    """`ablations/grpo.yaml`."""
    return path.relative_to(FOLDER).as_posix()


class Header(NamedTuple):
    """What a recipe opens with: what it is, and its fields; a field may stand several times."""

    what: str
    fields: dict[str, list[str]]

    @property
    def training_command(self) -> list[str]:
        """Words of the command that trains."""
        command = next(c for c in self.fields["Command"] if "q-hawkeye train" in c or "multi_node" in c)
        return shlex.split(command)


def header_of(path: Path) -> Header:
    """Read the opening comment of a file; a backslash continues a command on the next line."""
    lines = [line for line in path.read_text().splitlines() if line != "#!/usr/bin/env bash"]
    comment = []
    for line in lines:
        if not line.startswith("#") or line.startswith("#SBATCH"):
            break
        comment.append(line.removeprefix("#").removeprefix(" "))
    what, _, rest = "\n".join(comment).partition("\n\n")
    fields: dict[str, list[str]] = {}
    for line in rest.replace("\\\n", " ").splitlines():
        match = re.match(r"([A-Z][a-z]+): +(.*)", line)
        if match:
            name = match.group(1)
            fields.setdefault(name, []).append(match.group(2))
        else:
            fields[name][-1] += " " + line.strip()
    return Header(
        " ".join(what.split()), {key: [" ".join(v.split()) for v in values] for key, values in fields.items()}
    )


@cache
def script_options() -> dict[str, argparse.Action]:
    """All options that a recipe may set, by name."""
    return options_of(make_parser())


def resolved(path: Path) -> dict[str, Any]:
    """A recipe with all that it inherits."""
    return load_recipe(path, script_options())


def own_keys(path: Path) -> dict[str, Any]:
    """The keys of the file itself."""
    return yaml.safe_load(path.read_text())
