"""The card of a trained model: data, recipe, versions, curves and evaluation, in the form that the Hub reads."""

import dataclasses
import math
import platform
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..io.atomic import write_text
from ..wording import FIGURES, before_after_rows, escape, markdown_table, number

CARD_FILE = "README.md"
TAGS = ("generated_from_trainer", "image-quality-assessment")

# Paths of one machine, private names, and what TRL and transformers derive from other settings.
_LEFT_OUT = {
    "do_eval",
    "disable_tqdm",
    "ddp_find_unused_parameters",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "output_dir",
    "logging_dir",
    "run_name",
    "resume_from_checkpoint",
    "model_init_kwargs",
    "report_to",
    "generation_batch_size",
}


class DataPart(NamedTuple):
    """Images of one use (`training`, `validation` or `evaluation`): split, number, mean and deviation of the MOS."""

    use: str
    split: str
    images: int
    mean: float
    deviation: float


def data_part(use: str, split: str, mos: Sequence[float]) -> DataPart:
    """Describe the images of one use by their MOS, a non-empty sequence of length N."""
    mean = math.fsum(mos) / len(mos)
    return DataPart(use, split, len(mos), mean, math.sqrt(math.fsum((value - mean) ** 2 for value in mos) / len(mos)))


def recipe_of(args: Any, **further: Any) -> dict[str, Any]:
    """
    List the settings of a run that differ from their defaults, without folders, names of runs and tokens.

    Args:
        args ([`HawkeyeGRPOConfig`], [`~trl.ModelConfig`] or another dataclass):
            Settings.
        further:
            Settings of the script that belong to the recipe; those that are `None` are left out.

    Returns:
        `dict[str, Any]`: Values that YAML can hold; as keys of a recipe they give the same run.
    """
    recipe = {name: value for name, value in further.items() if value is not None}
    for field in dataclasses.fields(args):
        if not field.init or field.name in _LEFT_OUT or field.name.endswith("token"):
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value, default = (v.value if isinstance(v, Enum) else v for v in (getattr(args, field.name), default))
        if value not in (default, [], {}) and isinstance(value, bool | int | float | str | list | dict):
            recipe[field.name] = value
    return recipe


def write_model_card(
    folder: str | Path,
    *,
    name: str,
    base_model: str | None,
    tags: Sequence[str],
    data: Mapping[str, Any],
    recipe: Mapping[str, Any],
    before: Mapping[str, float | None] | None,
    after: Mapping[str, float | None],
    validation: Sequence[Mapping],
    versions: Mapping[str, str],
    **facts: Any,
) -> Path:
    """
    Write the card, atomically, in place of the one that TRL writes with each checkpoint.

    Args:
        folder (`str` or `Path`):
            Folder of the model.
        name (`str`):
            Name of the model.
        base_model (`str`, *optional*):
            Name of the trained model on the Hub, `None` for a local folder.
        tags (`Sequence[str]`):
            Tags of the trainer.
        data (`Mapping`):
            `source`, `score_min`, `score_max`, `mos_scale` or `None`, and `parts`, a list of [`DataPart`], the
            evaluation's last.
        recipe (`Mapping`):
            As [`recipe_of`] returns it.
        before, after (`Mapping` or `None`):
            Held-out figures with the keys of [`~wording.FIGURES`].
        validation (`Sequence[Mapping]`):
            Lines of `metrics.jsonl` with `eval_` figures.
        versions (`Mapping[str, str]`):
            Versions of the packages.
        facts:
            `method`: `name`, `title`, `id` (arXiv) and `citation` (BibTeX); `start`: the model that was trained, in
            words; `best`: `step`, `name` and `value` of the best checkpoint, or `None`; `steps`, `seed`, `seconds`;
            `resumed`: whether `seconds` starts at the last resume.

    Returns:
        `Path`: The card.
    """
    # `ModelCard.from_template` has neither strict names nor filters, and would not escape names from outside
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown: names go through `md`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"md": escape, "number": number}
    compared = [row[:3] for row in before_after_rows(before, after)]
    validated = [[str(line["step"]), *(number(line.get(f"eval_{key}")) for key in FIGURES)] for line in validation]
    text = environment.get_template("model_card.md.jinja").render(
        metadata=_metadata(name, base_model, [*TAGS, *tags], data, after),
        name=name,
        held_out=data["parts"][-1],
        data=data,
        recipe=yaml.safe_dump(dict(recipe), sort_keys=True, allow_unicode=True),
        before_after=markdown_table(["figure", "before", "after"], compared),
        validation=validated and markdown_table(["step", *FIGURES.values()], validated),
        versions={"python": platform.python_version(), **versions},
        machine=f"{platform.system()} {platform.machine()}",
        **facts,
    )
    path = Path(folder) / CARD_FILE
    write_text(path, text)
    return path


def _metadata(
    name: str, base_model: str | None, tags: Sequence[str], data: Mapping[str, Any], after: Mapping[str, float | None]
) -> str:
    results = [
        EvalResult(
            task_type="image-text-to-text",
            task_name="Image quality assessment",
            dataset_type="image-quality",
            dataset_name=data["source"],
            dataset_split=data["parts"][-1].split,
            metric_type=key.split("_")[0],
            metric_name=FIGURES[key],
            metric_value=round(value, 4),
        )
        for key, value in after.items()
        if key.startswith(("srcc", "plcc")) and value is not None and math.isfinite(value)
    ]
    card = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=list(dict.fromkeys(tags)),
        base_model=base_model,
        model_name=name,
        eval_results=results or None,  # the Hub refuses a result without a metric
    )
    return card.to_yaml()
