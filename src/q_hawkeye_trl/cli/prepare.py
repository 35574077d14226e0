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
    "card. The same command goes on after an interruption.",
    rich_markup_mode="markdown",
)

_FAULTS = "Faults that are permitted"
AllowMissing = Annotated[
    int,
    typer.Option(
        "--allow-missing", min=0, metavar="N", rich_help_panel=_FAULTS, help="Go on without N missing images."
    ),
]
AllowUnreadable = Annotated[
    int,
    typer.Option(
        "--allow-unreadable", min=0, metavar="N", rich_help_panel=_FAULTS, help="Go on without N unreadable images."
    ),
]
AllowOutside = Annotated[
    int,
    typer.Option(
        "--allow-outside",
        min=0,
        metavar="N",
        rich_help_panel=_FAULTS,
        help="Go on without N images out of the folder.",
    ),
]
AllowUnscored = Annotated[
    int,
    typer.Option(
        "--allow-unscored",
        min=0,
        metavar="N",
        rich_help_panel=_FAULTS,
        help="Go on without N rows that have no score.",
    ),
]
AllowLeakage = Annotated[
    int,
    typer.Option(
        "--allow-leakage", min=0, metavar="N", rich_help_panel=_FAULTS,
        help="Keep N contents that stand in more than one split.",
    ),
]  # fmt: skip
AllowSharedReference = Annotated[
    int,
    typer.Option(
        "--allow-shared-reference", min=0, metavar="N", rich_help_panel=_FAULTS,
        help="Keep N references that stand in more than one split.",
    ),
]  # fmt: skip
ReferencePattern = Annotated[
    str | None, typer.Option(help="Regular expression: its first group in the file name is the reference.")
]
Out = Annotated[Path, typer.Option(help="Folder to make; nothing in it is overwritten.")]


def _shared(
    root: Annotated[Path, typer.Option(help="Folder of the set in its official layout.")],
    out: Out,
    scale: Annotated[
        str | None, typer.Option(help="Rule of the MOS: deqa (default) or linear; more for koniq10k.")
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="Image folder in place of the official one, from --root or absolute.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split, where the set has none.")] = 0,
    shares: Annotated[
        str, typer.Option(help="Shares of train, validation and test, where the set has no split.")
    ] = "0.7,0.1,0.2",
    embed: Annotated[
        bool, typer.Option("--embed", help="Copy the image files into the folder; by default it names their paths.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that decode images; by default up to four.")
    ] = None,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Accept symbolic links that lead out of the set's folder.")
    ] = False,
    allow_missing: AllowMissing = 0,
    allow_unreadable: AllowUnreadable = 0,
    allow_outside: AllowOutside = 0,
    allow_unscored: AllowUnscored = 0,
    allow_leakage: AllowLeakage = 0,
    allow_shared_reference: AllowSharedReference = 0,
) -> None:
    """The options that every set has."""


def _command(name: str) -> Callable[[Callable[..., dict[str, Any]]], None]:
    """Registers a set: the decorated function turns the set's own options into arguments of its reader."""
    shared = inspect.signature(_shared).parameters

    def register(own: Callable[..., dict[str, Any]]) -> None:
        """Makes a command of the set's own options and the shared ones."""
        parameters = {**shared, **inspect.signature(own).parameters}

        def run(**values: Any) -> None:
            options = own(**{key: value for key, value in values.items() if key not in shared})
            _prepare(name, {key: values[key] for key in shared}, options)

        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            sorted(parameters.values(), key=lambda parameter: parameter.default is not inspect.Parameter.empty)
        )
        run.__annotations__ = {key: parameter.annotation for key, parameter in parameters.items()}
        run.__doc__ = own.__doc__
        app.command(name)(run)

    return register


@_command("koniq10k")
def _koniq10k(
    resolution: Annotated[str | None, typer.Option(help="1024x768 or 512x384; by default the first there.")] = None,
) -> dict[str, Any]:
    """KonIQ-10k: official split; --scale deqa, raw, zscore-minmax or zscore."""
    return {"resolution": resolution}


@_command("spaq")
def _spaq() -> dict[str, Any]:
    """SPAQ: MOS of 0 to 100, split by image."""
    return {}


@_command("kadid10k")
def _kadid10k(
    spread: Annotated[
        str, typer.Option(help="What the column `var` holds: std, variance, or auto, which lets the numbers tell.")
    ] = "auto",
) -> dict[str, Any]:
    """KADID-10k: "dmos" of 1 to 5 where higher is better, split by reference."""
    return {"spread": spread}


@_command("pipal")
def _pipal() -> dict[str, Any]:
    """PIPAL, training part: Elo ratings, split by reference."""
    return {}


@_command("livec")
def _livec(
    keep_training_images: Annotated[
        bool, typer.Option("--keep-training-images", help="Keep the seven images on which the raters practised.")
    ] = False,
) -> dict[str, Any]:
    """LIVE In the Wild Challenge: MOS of 0 to 100, split by image."""
    return {"keep_training_images": keep_training_images}


@_command("agiqa3k")
def _agiqa3k(
    target: Annotated[str, typer.Option(help="quality or alignment.")] = "quality",
) -> dict[str, Any]:
    """AGIQA-3K: generated images, scores of 0 to 5, split by text prompt."""
    return {"target": target}


@_command("csiq")
def _csiq() -> dict[str, Any]:
    """CSIQ: DMOS of 0 to 1 where lower is better, split by reference."""
    return {}


@_command("tid2013")
def _tid2013() -> dict[str, Any]:
    """TID2013: MOS of 0 to 9, split by reference."""
    return {}


@_command("flive")
def _flive() -> dict[str, Any]:
    """FLIVE (LIVE-FB): MOS of 0 to 100, split by image."""
    return {}


@_command("deqa")
def _deqa(
    labels: Annotated[
        list[str] | None, typer.Option(help="Meta file from --root, FILE or SPLIT=FILE; repeat it. Default: metas/.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the set; by default that of the folder.")] = None,
    reference_pattern: ReferencePattern = None,
) -> dict[str, Any]:
    """DeQA-Score's metas of one set: gt_score_norm as it stands there, splits by file."""
    return {"labels": labels, "name": name, "reference_pattern": reference_pattern}


@_command("table")
def _table(
    labels: Annotated[str, typer.Option(help="From --root: a .csv, .json, .jsonl or .parquet file or a folder.")],
    direction: Annotated[str, typer.Option(help="Which end of the score is better: higher or lower.")],
    name: Annotated[str, typer.Option(help="Name of the set, for the column `dataset`.")],
    low: Annotated[float | None, typer.Option(help="Lowest value that a score can have.")] = None,
    high: Annotated[float | None, typer.Option(help="Highest value that a score can have.")] = None,
    image_column: Annotated[str, typer.Option(help="Path of the image, or the image itself.")] = "image",
    score_column: Annotated[str, typer.Option(help="Opinion score.")] = "mos",
    std_column: Annotated[str | None, typer.Option(help="Standard deviation of the opinions.")] = None,
    variance_column: Annotated[str | None, typer.Option(help="Variance, in place of the standard deviation.")] = None,
    reference_column: Annotated[str | None, typer.Option(help="Undistorted original: kept in one split.")] = None,
    reference_pattern: ReferencePattern = None,
    group_column: Annotated[str | None, typer.Option(help="What else is kept in one split.")] = None,
    split_column: Annotated[str | None, typer.Option(help="Split of the row; by default it is drawn.")] = None,
    id_column: Annotated[str | None, typer.Option(help="Name of the image; by default its path.")] = None,
) -> dict[str, Any]:
    """Your own set: CSV, JSON, JSON lines, Parquet or a `datasets` folder; --scale linear (default) or deqa."""
    from ..data.readers.table import TableColumns

    if (low is None) != (high is None):
        raise ValueError("--low and --high go together.")
    columns = TableColumns(
        image_column,
        score_column,
        std_column,
        variance_column,
        reference_column,
        group_column,
        split_column,
        id_column,
    )
    return {
        "labels": labels, "direction": direction, "name": name, "columns": columns,
        "ends": None if low is None else (low, high), "reference_pattern": reference_pattern,
    }  # fmt: skip


@app.command("mix")
def _mix(
    folders: Annotated[list[Path], typer.Argument(help="Folders that `q-hawkeye prepare` or `pair` wrote.")],
    out: Out,
    allow_leakage: AllowLeakage = 0,
) -> None:
    """Join prepared sets for training on all of them."""
    from ..data.mix import mix

    _report(mix(folders, out, allowed={"leakage": allow_leakage}))


def _prepare(name: str, shared: dict[str, Any], own: dict[str, Any]) -> None:
    from ..data.faults import FAULTS
    from ..data.prepare import prepare
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
        typer.echo(f"\ninterrupted; the same command goes on with what is in {shared['out']}.partial", err=True)
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

    interval = 0.5 if sys.stderr.isatty() else 30  # a log file gets a line now and then
    bar = tqdm(total=total, desc="looking at images", unit="image", mininterval=interval, leave=False)

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
        spans = [
            "none" if span is None else f"{span[0]:.4g} to {span[2]:.4g}"
            for span in (split["mos"], split["mos_raw"], split["mos_std"])
        ]
        table.add_row(name, f"{split['rows']:,}", str(split["references"] or "none"), *spans)
    console.print(table)
    for note in result.notes:
        console.print(f"- {note}", markup=False)
    if result.faults:
        console.print("Permitted:", describe_faults(result.faults, shown=3), sep="\n", markup=False)
    state = "was there already, made by the same command" if result.existed else "is ready"
    console.print(f"{result.out} {state}; its card is README.md.", markup=False)
