"""`q-hawkeye prepare`: one command a set, with the options that all sets share and those of its own."""

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..data.preparation import Preparation

app = typer.Typer(
    no_args_is_help=True,
    help="Make a `datasets` folder of an IQA set: labels on one scale, checked images, splits without leakage, a "
    "card. Run the same command again to resume after an interruption.",
    rich_markup_mode="markdown",
)

_REQUIRED = inspect.Parameter.empty


def _option(name: str, kind: Any, default: Any, text: str, **details: Any) -> inspect.Parameter:
    """Describe an option as a parameter, which Typer reads."""
    flags = [f"--{name.replace('_', '-')}"] if kind is bool else []  # without --no-…
    annotation = Annotated[kind, typer.Option(*flags, help=text, **details)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _permission(kind: str, text: str) -> inspect.Parameter:
    return _option(f"allow_{kind}", int, 0, text, min=0, metavar="N", rich_help_panel="Permitted faults")


_OUT = _option("out", Path, _REQUIRED, "Folder to make; nothing in it is overwritten.")
_LEAKAGE = _permission("leakage", "Keep up to N contents that are in more than one split.")
_SHARED = [
    _option("root", Path, _REQUIRED, "Folder of the set in its official layout."),
    _OUT,
    _option("scale", str | None, None, "Rule of the MOS: deqa (default) or linear; more for koniq10k."),
    _option("images", str | None, None, "Image folder instead of the official one, from --root or absolute."),
    _option("seed", int, 0, "Seed of the split, if the set has none.", min=0),
    _option("shares", str, "0.7,0.1,0.2", "Shares of train, validation and test, if the set has no split."),
    _option("embed", bool, False, "Copy the image files into the folder; by default it holds their paths."),
    _option("workers", int | None, None, "Threads that decode images; by default up to four.", min=1),
    _option("follow_links", bool, False, "Accept symbolic links that lead out of the set's folder."),
    _permission("missing", "Drop up to N missing images."),
    _permission("unreadable", "Drop up to N unreadable images."),
    _permission("outside", "Drop up to N images outside the folder."),
    _permission("unscored", "Drop up to N rows without a score."),
    _LEAKAGE,
    _permission("shared_reference", "Keep up to N references that are in more than one split."),
]
_PATTERN = _option(
    "reference_pattern", str | None, None, "Regular expression: its first group in the file name is the reference."
)
_SETS: dict[str, tuple[str, list[inspect.Parameter]]] = {
    "koniq10k": (
        "KonIQ-10k: official split; --scale deqa, raw, zscore-minmax or zscore.",
        [_option("resolution", str | None, None, "1024x768 or 512x384; by default the first that exists.")],
    ),
    "spaq": ("SPAQ: MOS of 0 to 100, split by image.", []),
    "kadid10k": (
        'KADID-10k: "dmos" of 1 to 5 where higher is better, split by reference.',
        [_option("spread", str, "auto", "Content of the column `var`: std, variance, or auto (from the numbers).")],
    ),
    "pipal": ("PIPAL, training part: Elo ratings, split by reference.", []),
    "livec": (
        "LIVE In the Wild Challenge: MOS of 0 to 100, split by image.",
        [_option("keep_training_images", bool, False, "Keep the seven images on which the raters practised.")],
    ),
    "agiqa3k": (
        "AGIQA-3K: generated images, scores of 0 to 5, split by text prompt.",
        [_option("target", str, "quality", "quality or alignment.")],
    ),
    "csiq": ("CSIQ: DMOS of 0 to 1 where lower is better, split by reference.", []),
    "tid2013": ("TID2013: MOS of 0 to 9, split by reference.", []),
    "flive": ("FLIVE (LIVE-FB): MOS of 0 to 100, split by image.", []),
    "deqa": (
        "DeQA-Score's metas of one set: its gt_score_norm, splits by file.",
        [
            _option("labels", list[str] | None, None, "Meta file from --root, FILE or SPLIT=FILE; default: metas/."),
            _option("name", str | None, None, "Name of the set; by default that of the folder."),
            _PATTERN,
        ],
    ),
    "table": (
        "Your own set: CSV, JSON, JSON lines, Parquet or a `datasets` folder; --scale linear (default) or deqa.",
        [
            _option("labels", str, _REQUIRED, "From --root: a .csv, .json, .jsonl or .parquet file, or a folder."),
            _option("direction", str, _REQUIRED, "Better end of the score: higher or lower."),
            _option("name", str, _REQUIRED, "Name of the set, for the column `dataset`."),
            _option("low", float | None, None, "Lowest value that a score can have."),
            _option("high", float | None, None, "Highest value that a score can have."),
            _option("image_column", str, "image", "Path of the image, or the image itself."),
            _option("score_column", str, "mos", "Opinion score."),
            _option("std_column", str | None, None, "Standard deviation of the opinions."),
            _option("variance_column", str | None, None, "Variance, instead of the standard deviation."),
            _option("reference_column", str | None, None, "Undistorted original: kept in one split."),
            _PATTERN,
            _option("group_column", str | None, None, "Another key of rows that stay in one split."),
            _option("split_column", str | None, None, "Split of the row; by default it is drawn."),
            _option("id_column", str | None, None, "Name of the image; by default its path."),
        ],
    ),
}


def _register(name: str, text: str, own: list[inspect.Parameter]) -> None:
    parameters = sorted([*_SHARED, *own], key=lambda parameter: parameter.default is not _REQUIRED)
    shared = {parameter.name for parameter in _SHARED}

    def run(**values: Any) -> None:
        options = {key: value for key, value in values.items() if key not in shared}
        _prepare(name, {key: values[key] for key in shared}, _table_options(options) if name == "table" else options)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app.command(name, help=text)(run)


for _name, (_text, _own) in _SETS.items():
    _register(_name, _text, _own)


@app.command("mix")
def _mix(
    folders: Annotated[list[Path], typer.Argument(help="Folders that `q-hawkeye prepare` or `pair` wrote.")],
    out: _OUT.annotation,  # type: ignore[name-defined]
    allow_leakage: _LEAKAGE.annotation = 0,  # type: ignore[name-defined]
) -> None:
    """Join prepared sets for training on all of them."""
    from ..data.mix import mix

    _report(mix(folders, out, allowed={"leakage": allow_leakage}))


def _table_options(values: dict[str, Any]) -> dict[str, Any]:
    from ..data.label_tables import TableColumns

    low, high = values.pop("low"), values.pop("high")
    if (low is None) != (high is None):
        raise ValueError("--low and --high must be given together.")
    named = {key.removesuffix("_column"): values.pop(key) for key in list(values) if key.endswith("_column")}
    columns = TableColumns(image_id=named.pop("id"), **named)
    return {**values, "columns": columns, "ends": None if low is None else (low, high)}


def _prepare(name: str, shared: dict[str, Any], own: dict[str, Any]) -> None:
    from ..data.faults import FAULTS
    from ..data.preparation import prepare
    from ..data.readers import READERS

    labels = READERS[name](shared["root"], scale=shared["scale"], images=shared["images"], **own)
    try:
        result = prepare(
            labels,
            shared["out"],
            seed=shared["seed"],
            shares=_shares(shared["shares"]),
            embed=shared["embed"],
            allowed={kind: shared[f"allow_{kind.replace('-', '_')}"] for kind in FAULTS},
            follow_links=shared["follow_links"],
            workers=shared["workers"] or min(4, os.cpu_count() or 1),
            progress=_progress,
        )
    except KeyboardInterrupt:
        typer.echo(f"\ninterrupted; the same command resumes from {shared['out']}.partial", err=True)
        raise
    _report(result)


def _shares(text: str) -> tuple[float, float, float]:
    try:
        train, validation, test = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"--shares: expected three numbers like 0.7,0.1,0.2, got {text!r}.") from None
    return train, validation, test


def _progress(total: int) -> Callable[[], object]:
    from tqdm import tqdm

    interval = 0.5 if sys.stderr.isatty() else 30  # few lines in a log file
    bar = tqdm(total=total, desc="inspecting images", unit="image", mininterval=interval, leave=False)

    def step() -> None:
        bar.update()
        if bar.n == total:
            bar.close()

    return step


def _report(result: "Preparation") -> None:
    from rich.console import Console
    from rich.table import Table

    from ..data.faults import describe_faults

    console = Console(highlight=False, soft_wrap=True)
    table = Table("split", "images", "references", "MOS", "released score", "std (MOS)")
    for name, split in result.splits.items():
        spans = [split[key] for key in ("mos", "mos_raw", "mos_std")]
        texts = ["none" if span is None else f"{span[0]:.4g} to {span[2]:.4g}" for span in spans]
        table.add_row(name, f"{split['rows']:,}", str(split["references"] or "none"), *texts)
    console.print(table)
    for note in result.notes:
        console.print(f"- {note}", markup=False)
    if result.faults:
        console.print("Permitted:", describe_faults(result.faults, shown=3), sep="\n", markup=False)
    state = "exists already, made by the same command" if result.existed else "is ready"
    console.print(f"{result.out} {state}; its card is README.md.", markup=False)
