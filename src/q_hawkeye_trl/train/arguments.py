"""The options of the training: its own, those of [`HawkeyeGRPOConfig`] and those of [`~trl.ModelConfig`]."""

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from transformers import TrainingArguments
from trl import GRPOConfig, ModelConfig, TrlParser

from ..config import HawkeyeGRPOConfig
from ..evaluation.validation import BEST_METRIC
from ..rewards import get_reward
from .recipes import DEFAULT_RECIPE, ENVIRONMENT, find_recipe, load_recipe, recipe_parser


@dataclass
class ScriptArguments:
    """Options of the training that belong neither to [`HawkeyeGRPOConfig`] nor to [`~trl.ModelConfig`]."""

    data_dir: str | None = field(
        default=None, metadata={"help": "Folder of KonIQ-10k (images and an official label file)."}
    )
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Instead of data_dir: a `datasets` folder with image(s), mos and optional degraded_image(s)."
        },
    )
    synthetic_dir: str = field(
        default="runs/synthetic_koniq10k",
        metadata={"help": "Folder of the synthetic set, written if neither data_dir nor dataset is given."},
    )
    allow_missing: int = field(
        default=0,
        metadata={"help": "Maximum number of missing images per split of data_dir; their rows are skipped."},
    )
    mos_scale: str = field(
        default="deqa",
        metadata={"help": "How KonIQ's MOS is mapped to [1, 5]: deqa, raw, zscore-minmax or zscore."},
    )
    rewards: list[str] = field(
        default_factory=lambda: ["accuracy", "format"],
        metadata={"help": "Rewards that are summed: accuracy, format, repetition, threshold, rank, margin."},
    )
    reward_parameters: dict | str | None = field(
        default=None, metadata={"help": 'Parameters by reward, as JSON: \'{"accuracy": {"tau": 0.5}}\'.'}
    )
    held_out_split: str = field(
        default="test", metadata={"help": "Split that is measured before and after training; tune on validation."}
    )
    held_out_images: int | None = field(
        default=None, metadata={"help": "Measure only the first images of that split, this many."}
    )
    held_out_batch_size: int = field(default=64, metadata={"help": "Batch size of that measurement, in answers."})
    validate: bool = field(
        default=True,
        metadata={
            "help": "Measure the validation images during training: as `eval_strategy` says; without one at every "
            "checkpoint, or four times in a run that saves none."
        },
    )
    validation_split: str | None = field(
        default=None, metadata={"help": "Split of the validation images. By default `validation`, if the data has it."}
    )
    validation_images: int | None = field(
        default=None, metadata={"help": "Measure only the first images of that split, this many."}
    )
    validation_passes: int = field(default=4, metadata={"help": "Sampled answers per image in that measurement."})
    keep_best: bool = field(
        default=True,
        metadata={
            "help": "Keep the checkpoint that is best on the validation images by `metric_for_best_model` "
            f"({BEST_METRIC} by default), and load it at the end."
        },
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many validations without improvement."}
    )
    cpu_threads: int | None = field(
        default=None,
        metadata={
            "help": "Threads of each process that trains on a CPU. By default OMP_NUM_THREADS if it is above 1, "
            "otherwise all cores divided by the processes of the machine; a resumed run keeps its number."
        },
    )

    def __post_init__(self):
        if isinstance(self.reward_parameters, str):
            try:
                self.reward_parameters = json.loads(self.reward_parameters)
            except json.JSONDecodeError as error:
                raise ValueError(f"reward_parameters is not JSON ({error}); write '{{\"accuracy\": ...}}'.") from error
        for name, least in (("held_out_images", 2), ("validation_images", 2), ("cpu_threads", 1)):
            if (count := getattr(self, name)) is not None and count < least:
                raise ValueError(f"{name} is {count}; give at least {least}, or leave it out to use all.")
        if self.data_dir is not None and self.dataset is not None:
            raise ValueError("data_dir and dataset are both given; keep one.")
        given: Any = self.reward_parameters or {}
        unused = set(given) - set(self.rewards)
        if unused:
            raise ValueError(
                f"reward_parameters names {', '.join(unused)}, not among rewards {', '.join(self.rewards)}."
            )
        for name in self.rewards:  # a wrong parameter fails here, before anything is loaded
            parameters: Any = given.get(name, {})
            if not isinstance(parameters, dict):
                raise ValueError(f"reward_parameters gives {name} {parameters!r}; give a mapping like {{tau: 0.5}}.")
            get_reward(name, **parameters)


_GROUPS = {
    "Data, rewards and measurement": ScriptArguments,
    "Method": HawkeyeGRPOConfig,
    "TRL's GRPO": GRPOConfig,
    "TRL's model": ModelConfig,
    "transformers' training": TrainingArguments,
}
"""Titles of the help in their order; a class comes after its subclasses."""


class TrainingOptions(NamedTuple):
    """
    What [`parse_arguments`] read.

    Args:
        script_args ([`ScriptArguments`]), training_args ([`HawkeyeGRPOConfig`]), model_args ([`~trl.ModelConfig`]):
            The options.
        is_default (`bool`):
            Whether neither a recipe nor an output folder is named.
    """

    script_args: ScriptArguments
    training_args: HawkeyeGRPOConfig
    model_args: ModelConfig
    is_default: bool


def parse_arguments(argv: Sequence[str], parser: TrlParser | None = None) -> TrainingOptions:
    """
    Read a training's command line and its recipe.

    Nothing is written, no model or data is loaded, and `sys.argv` is not read, so that other commands can check a
    recipe. The `env` of the recipe is added to the environment.

    Args:
        argv (`Sequence[str]`):
            Words after the program's name, e.g. `["--config", "koniq/qwen2_5_vl_7b", "--seed", "1"]`. Without
            `--config` the packaged recipe `demo/tiny` gives the defaults.
        parser ([`~trl.TrlParser`], *optional*):
            As [`make_parser`] returns it.

    Returns:
        [`TrainingOptions`]: `(script_args, training_args, model_args, is_default)`.

    Raises:
        `FileNotFoundError`, `ValueError`: See [`~recipes.load_recipe`]; or a value is refused by its dataclass.
        `SystemExit`: `--help`, or a value that argparse refuses, with its message on stderr.
    """
    own, rest = recipe_parser().parse_known_args(argv)
    parser = parser or make_parser()
    base = None if own.base is None else find_recipe(own.base)
    recipe = load_recipe(find_recipe(own.config or DEFAULT_RECIPE), options_of(parser), base=base)
    os.environ.update({name: str(value) for name, value in recipe.pop(ENVIRONMENT, {}).items()})
    parser.set_defaults_with_config(**recipe)
    script_args, training_args, model_args = parser.parse_args_into_dataclasses(rest, look_for_args_file=False)
    names_folder = any(word.split("=")[0] == "--output_dir" for word in rest)
    is_default = own.config is None and not names_folder
    return TrainingOptions(script_args, training_args, model_args, is_default)


def make_parser(prog: str | None = None) -> TrlParser:
    """Build the parser of all options, whose help lists this project's before TRL's."""
    parser = TrlParser(
        (ScriptArguments, HawkeyeGRPOConfig, ModelConfig),
        prog=prog,
        usage="%(prog)s [--config NAME|FILE] [options]",
        allow_abbrev=False,
    )
    left = {action.dest: action for action in reversed(parser._actions)}  # without the --no_ forms
    members = {}
    # bases before their subclasses: an option belongs to the class that declares it
    for title, kind in reversed(_GROUPS.items()):
        members[title] = [left.pop(option.name) for option in dataclasses.fields(kind) if option.name in left]
    parser._action_groups = recipe_parser()._action_groups[-1:]
    for title in _GROUPS:
        parser.add_argument_group(title)._group_actions = members[title]
    return parser


def options_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """The options that a recipe may set, by name."""
    return {action.dest: action for action in parser._actions if action.dest != "help"}
