"""`q-hawkeye pair`: degraded views for the rows of a prepared folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..pairs.pair_run import PairSummary

_JUDGE = {"rich_help_panel": "Judge"}
_DECISIONS = {"rich_help_panel": "People's decisions"}


def pair(
    data: Annotated[Path, typer.Option(help="Folder that `q-hawkeye prepare` (or `save_to_disk`) wrote.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it appears once it is complete.")],
    degradations: Annotated[
        str,
        typer.Option(
            help="Degradations to draw from, separated by commas: `motion_blur@3` (severity 1 to 5), "
            "`gaussian_noise@2+jpeg@3`, or the groups `release`, `release@strong`, `all`, `all@3`."
        ),
    ] = "release",
    second: Annotated[
        str,
        typer.Option(help="Degradations of another kind that strengthen mild pairs; `none` only marks them."),
    ] = "release@strong",
    seed: Annotated[int, typer.Option(help="Seed of all draws.")] = 0,
    mild_ssim: Annotated[float, typer.Option(help="A pair is too mild if its SSIM is at least this ...")] = 0.97,
    mild_psnr: Annotated[float, typer.Option(help="... and its PSNR at least this, in dB.")] = 30.0,
    drop_mild: Annotated[bool, typer.Option("--drop-mild", help="Drop views that stay too mild.")] = False,
    split: Annotated[list[str] | None, typer.Option(help="Split that gets pairs, repeatable; by default all.")] = None,
    limit: Annotated[int | None, typer.Option(help="Maximum number of rows of each split.")] = None,
    workers: Annotated[int, typer.Option(help="Number of processes; the pixels don't depend on it.")] = 1,
    judge: Annotated[
        str | None,
        typer.Option(help="VLM that judges each pair: a checkpoint, or the model's name at --judge-url.", **_JUDGE),
    ] = None,
    judge_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible endpoint, e.g. http://127.0.0.1:8000/v1.", **_JUDGE)
    ] = None,
    judge_key_variable: Annotated[
        str | None,
        typer.Option(help="Environment variable with the endpoint's key. By default no key is sent.", **_JUDGE),
    ] = None,
    judge_timeout: Annotated[float, typer.Option(help="Seconds to wait for an answer.", **_JUDGE)] = 120.0,
    judge_concurrency: Annotated[
        int, typer.Option(help="Concurrent requests of each worker to the endpoint.", **_JUDGE)
    ] = 4,
    decisions: Annotated[Path | None, typer.Option(help="File of `q-hawkeye review` to apply.", **_DECISIONS)] = None,
    rejected: Annotated[
        str,
        typer.Option(help="`drop` the view of a rejected pair, or `strengthen` it once more.", **_DECISIONS),
    ] = "drop",
) -> None:
    """
    Make a degraded view of each image, measure its distance from the original, and strengthen views that are too mild.

    The output is the data with a `degraded_image` column, ready for training, and a manifest, `pairs.parquet`. Run the
    same command again to resume an interrupted run, or to retry the rows that failed.
    """
    from ..pairs.judge import JudgeSettings
    from ..pairs.pair_run import make_pairs
    from ..pairs.pair_settings import PairSettings

    if judge is None and judge_url is not None:
        raise ValueError("--judge-url needs --judge, the name of the model there.")
    asked = judge and JudgeSettings(
        judge, judge_url, judge_key_variable, timeout=judge_timeout, concurrency=judge_concurrency
    )
    settings = PairSettings(
        degradations=_names(degradations),
        second=() if second == "none" else _names(second),
        seed=seed,
        mild_ssim=mild_ssim,
        mild_psnr=mild_psnr,
        drop_mild=drop_mild,
        splits=split or None,
        limit=limit,
        judge=asked or None,
        decisions=decisions,
        rejected=rejected,
    )
    summary = make_pairs(data, out, settings, workers=workers)
    _print(summary)
    if summary.unfinished:
        raise typer.Exit(1)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _print(summary: "PairSummary") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ..pairs.pair_manifest import VERDICTS

    console = Console(highlight=False)
    table = Table(title=f"{summary.rows:,} rows, {summary.made:,} made by this run", title_justify="left")
    table.add_column("verdict")
    table.add_column("rows", justify="right")
    table.add_column("meaning")
    for verdict, count in summary.verdicts.most_common():
        table.add_row(verdict, f"{count:,}", VERDICTS[verdict])
    console.print(table)
    if summary.strengthened:
        console.print(f"Pairs strengthened by a second degradation: {summary.strengthened:,}")
    for image_id, note in summary.notes:
        console.print(escape(f"note: {_short(image_id)}: {note}"))
    for image_id, verdict, error in summary.problems:
        console.print(escape(f"{verdict}: {_short(image_id)}: {error}"))
    if summary.unfinished:
        listed = f" ({len(summary.problems)} listed)" if summary.unfinished > len(summary.problems) else ""
        console.print(f"Unfinished rows: {summary.unfinished:,}{listed}. Run the same command again to retry them.")
    if summary.unused_decisions:
        console.print(f"Decisions about pairs that are not in this data set: {summary.unused_decisions:,}")
    if summary.verdicts["too_mild"]:
        console.print("Some pairs are still too mild: review them with q-hawkeye review, or pass --drop-mild.")
    console.print(escape(f"In {summary.folder}: the rows with degraded_image, pairs.parquet, README.md"))


def _short(name: str) -> str:
    return name if len(name) <= 80 else f"{name[:77]}…"
