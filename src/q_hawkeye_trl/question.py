"""The question put to a policy: prompt, scale, parser and image limit, saved in the model's folder."""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from .io.atomic import write_json
from .text import QUALITY_PROMPT, QUALITY_SCALE, parse_score, quality_messages

TASK_FILE = "quality_task.json"
"""File in a model's folder that maps task names to questions."""

TASK_VERSION = 1
DEFAULT_TASK = "quality"

ScoreFunc = Callable[[str], float | None]

_BOXED = re.compile(r"\\boxed\{\s*(-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))\s*\}")


def parse_boxed(text: str) -> float | None:
    r"""Read the score in `\boxed{}`; `None` if there is none, or if several differ."""
    numbers = _BOXED.findall(text)
    values = set(map(float, numbers))
    if len(values) != 1 or text.count("\\boxed{") != len(numbers):
        return None
    value = values.pop()
    return value if math.isfinite(value) else None


PARSERS: dict[str, ScoreFunc] = {"number": parse_score, "boxed": parse_boxed}
"""Parsers by name: `<answer>3.75</answer>`, and `\\boxed{80}`."""


@dataclass(frozen=True)
class Question:
    r"""
    What a policy is asked for an image, and how its answer is read.

    Args:
        prompt (`str` or `list[dict]`, *optional*):
            Text of the user's message, or a whole conversation in TRL's form. `None` if every dataset row brings its
            own. Defaults to the project's prompt.
        score_min (`float`, *optional*, defaults to `1.0`):
            Lower end of the scale that the prompt asks for, in points of that scale.
        score_max (`float`, *optional*, defaults to `5.0`):
            Upper end of the scale.
        parser (`str` or `None`, *optional*, defaults to `"number"`):
            How a score is read: a name of [`PARSERS`] (`number` reads `<answer>3.75</answer>`, `boxed` reads
            `\boxed{80}`) or `"module:function"`. `None` if the function of the training can't be imported.
        max_pixels (`int`, *optional*):
            Largest image, in pixels, that the model sees.

    Raises:
        `ValueError`: The scale is empty, the parser is unknown, or `max_pixels` is below 1.
    """

    prompt: str | list[dict] | None = QUALITY_PROMPT
    score_min: float = QUALITY_SCALE[0]
    score_max: float = QUALITY_SCALE[1]
    parser: str | None = "number"
    max_pixels: int | None = None

    def __post_init__(self):
        if not self.score_min < self.score_max:
            raise ValueError(f"score_min {self.score_min} must be below score_max {self.score_max}.")
        if self.max_pixels is not None and self.max_pixels < 1:
            raise ValueError(f"max_pixels is {self.max_pixels}, expected at least 1.")
        if self.parser is not None and self.parser not in PARSERS and ":" not in self.parser:
            names = ", ".join(PARSERS)
            raise ValueError(f"Unknown score parser {self.parser!r}: expected {names} or 'module:function'.")

    @property
    def scale(self) -> tuple[float, float]:
        """Lower and upper end of the scale."""
        return self.score_min, self.score_max

    @property
    def parse(self) -> ScoreFunc:
        """The function that reads the score of an answer's text, `None` for no score."""
        if self.parser is None:
            raise ValueError(
                "The score parser of this model's training can't be imported: name one as 'module:function'."
            )
        return PARSERS.get(self.parser) or _import_parser(self.parser)

    def messages(self) -> list[dict]:
        """The conversation that asks the question, without its image, in TRL's form."""
        if self.prompt is None:
            raise ValueError("This model was trained with a prompt for each row, and none is given: pass a prompt.")
        return quality_messages(self.prompt) if isinstance(self.prompt, str) else self.prompt


def override(question: Question, given: Mapping[str, Any]) -> Question:
    """The question with the given fields in place of its own, as far as they are not `None`."""
    return replace(question, **{name: value for name, value in given.items() if value is not None})


def finite_score(score_fn: ScoreFunc, text: str) -> float | None:
    """Read a score with a caller's function; raise `ValueError` if it is NaN or infinite."""
    score = score_fn(text)
    if score is not None and not math.isfinite(score):
        raise ValueError(f"score_fn returned {score} for {text!r}; return None for no score.")
    return score


def name_parser(function: ScoreFunc) -> str | None:
    """The parser's name as [`Question`] takes it, or `None` if the function can't be imported."""
    for name, known in PARSERS.items():
        if function is known:
            return name
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module in (None, "__main__") or not name.isidentifier():
        return None
    return f"{module}:{name}"


def common_prompt(dataset: Any) -> str | list[dict] | None:
    """The prompt that all rows of a dataset ask, `None` if they differ, have images in it, or can't be compared."""
    if "prompt" not in (getattr(dataset, "column_names", None) or ()) or not hasattr(dataset, "__len__"):
        return None
    prompts = iter(dataset["prompt"])
    first = next(prompts, None)
    if first is None or any(prompt != first for prompt in prompts):
        return None
    if isinstance(first, str):
        return first
    if len(first) == 1 and first[0]["role"] == "user" and isinstance(first[0]["content"], str):
        return first[0]["content"]
    messages = _without_none(first)
    blocks = [block for message in messages if isinstance(message["content"], list) for block in message["content"]]
    return None if any("image" in block for block in blocks) else messages


def with_prompt(dataset: Any, prompt: str) -> Any:
    """A dataset of the `datasets` library, or a dictionary of them, in which every row asks this prompt."""
    if dataset is None:
        return None
    if isinstance(dataset, Mapping) and not hasattr(dataset, "map"):
        return {name: with_prompt(part, prompt) for name, part in dataset.items()}
    if not hasattr(dataset, "map"):
        raise ValueError(
            f"prompt needs a dataset of the `datasets` library, got {type(dataset).__name__}: give its rows a prompt, "
            "and leave the option out."
        )
    if not hasattr(dataset, "add_column"):
        return dataset.map(lambda row: {"prompt": quality_messages(prompt)})
    if "prompt" in dataset.column_names:
        dataset = dataset.remove_columns("prompt")
    return dataset.add_column("prompt", [quality_messages(prompt) for _ in range(len(dataset))])


def _without_none(value: Any) -> Any:
    # Arrow gives every block the keys of all
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def save_questions(folder: str | Path, questions: Mapping[str, Question]) -> None:
    """Write the questions of a model, by task name, to its folder."""
    tasks = {name: asdict(question) for name, question in questions.items()}
    write_json(Path(folder) / TASK_FILE, {"version": TASK_VERSION, "tasks": tasks})


def load_question(folder: str | Path, task: str = DEFAULT_TASK) -> Question | None:
    """
    Read a question from a model's folder.

    Args:
        folder (`str` or `Path`):
            Folder of a model or adapter.
        task (`str`, *optional*, defaults to `"quality"`):
            Name of the task.

    Returns:
        [`Question`] or `None`: `None` if the folder has no `quality_task.json`.

    Raises:
        `ValueError`: The file is damaged, of another version, or has no such task.
    """
    path = Path(folder) / TASK_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, tasks = content["version"], content["tasks"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a description of questions ({error}): restore it or delete it.") from error
    if version != TASK_VERSION:
        raise ValueError(f"{path} has version {version}, expected {TASK_VERSION}: upgrade q_hawkeye_trl.")
    if task not in tasks:
        raise ValueError(f"{path} has no task {task!r}: choose one of {', '.join(tasks)}.")
    return _question_of(path, task, tasks[task])


def _question_of(path: Path, task: str, values: Any) -> Question:
    known = {field.name for field in fields(Question)}
    if not isinstance(values, dict) or set(values) - known:
        unknown = sorted(set(values) - known) if isinstance(values, dict) else values
        raise ValueError(f"{path}, task {task!r}: unknown {unknown}, expected the keys {', '.join(sorted(known))}.")
    try:
        return Question(**values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}, task {task!r}: {error}") from error


def _import_parser(name: str) -> ScoreFunc:
    module, _, function = name.partition(":")
    try:
        parser = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"The score parser {name} can't be imported ({error}): check the name or PYTHONPATH."
        ) from error
    if not callable(parser):
        raise ValueError(f"The score parser {name} is not a function.")
    return parser
