"""`q-hawkeye pair`: degraded views for the rows of a prepared folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..pairs.judge import JudgeSettings
    from ..pairs.run import PairSummary

_JUDGE = "Judge"
_DECISIONS = "People's decisions"

Data = Annotated[Path, typer.Option(help="Folder that `q-hawkeye prepare` (or `save_to_disk`) wrote.")]
Out = Annotated[Path, typer.Option(help="Folder to write; it appears when it is whole.")]
Degradations = Annotated[
    str,
    typer.Option(
        help="Degradations of which each image gets one, with commas between: `motion_blur@3` (severity 1 to 5), "
        "`gaussian_noise@2+jpeg@3`, the groups `release`, `release@strong`, `all`, `all@3`."
    ),
]
Second = Annotated[
    str,
    typer.Option(
        help="Degradations that strengthen a pair that came out too mild, by another kind; `none` marks such pairs "
        "only."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of all draws.")]
MildSsim = Annotated[float, typer.Option(help="Too mild: SSIM of at least this, and …")]
MildPsnr = Annotated[float, typer.Option(help="… PSNR (dB) of at least this.")]
DropMild = Annotated[bool, typer.Option("--drop-mild", help="Leave out the views that are still too mild in the end.")]
Split = Annotated[list[str] | None, typer.Option(help="Split that gets pairs (again for several); by default all.")]
Limit = Annotated[int | None, typer.Option(help="Only the first so many rows of each split.")]
Workers = Annotated[int, typer.Option(help="Processes; the pixels are the same for any number.")]
Judge = Annotated[
    str | None,
    typer.Option(
        help="VLM that looks at each pair: a transformers checkpoint, or with --judge-url the model's name there.",
        rich_help_panel=_JUDGE,
    ),
]
JudgeUrl = Annotated[
    str | None,
    typer.Option(help="OpenAI-compatible endpoint, like http://127.0.0.1:8000/v1.", rich_help_panel=_JUDGE),
]
JudgeKeyVariable = Annotated[
    str | None,
    typer.Option(
        help="Environment variable with the endpoint's key; without it none is sent.", rich_help_panel=_JUDGE
    ),
]
JudgeTimeout = Annotated[float, typer.Option(help="Seconds for an answer.", rich_help_panel=_JUDGE)]
JudgeConcurrency = Annotated[
    int, typer.Option(help="Questions at a time of each worker to an endpoint.", rich_help_panel=_JUDGE)
]
Decisions = Annotated[
    Path | None,
    typer.Option(help="Apply the decisions of `q-hawkeye review` in this file.", rich_help_panel=_DECISIONS),
]
Rejected = Annotated[
    str,
    typer.Option(
        help="A rejected pair loses its view (`drop`) or gets a second degradation (`strengthen`).",
        rich_help_panel=_DECISIONS,
    ),
]


def pair(
    data: Data,
    out: Out,
    degradations: Degradations = "release",
    second: Second = "release@strong",
    seed: Seed = 0,
    mild_ssim: MildSsim = 0.97,
    mild_psnr: MildPsnr = 30.0,
    drop_mild: DropMild = False,
    split: Split = None,
    limit: Limit = None,
    workers: Workers = 1,
    judge: Judge = None,
    judge_url: JudgeUrl = None,
    judge_key_variable: JudgeKeyVariable = None,
    judge_timeout: JudgeTimeout = 120.0,
    judge_concurrency: JudgeConcurrency = 4,
    decisions: Decisions = None,
    rejected: Rejected = "drop",
) -> None:
    """
    Make a degraded view of each image, measure how far it is from the original, and strengthen the too mild ones.

    The output is the data with a `degraded_image` column, for `examples/train_koniq.py --dataset`, and a manifest,
    `pairs.parquet`. A stopped run goes on when the same command runs again; on a finished folder it tries again what
    failed.
    """
    from ..pairs.run import make_pairs
    from ..pairs.settings import PairSettings

    settings = PairSettings(
        degradations=_names(degradations),
        second=() if second == "none" else _names(second),
        seed=seed,
        mild_ssim=mild_ssim,
        mild_psnr=mild_psnr,
        drop_mild=drop_mild,
        splits=split or None,
        limit=limit,
        judge=_judge_settings(judge, judge_url, judge_key_variable, judge_timeout, judge_concurrency),
        decisions=decisions,
        rejected=rejected,
    )
    summary = make_pairs(data, out, settings, workers=workers)
    _print(summary)
    if summary.unfinished:
        raise typer.Exit(1)


def _judge_settings(
    model: str | None, url: str | None, key_variable: str | None, timeout: float, concurrency: int
) -> "JudgeSettings | None":
    from ..pairs.judge import JudgeSettings

    if model is not None:
        return JudgeSettings(model, url, key_variable, timeout=timeout, concurrency=concurrency)
    if url is not None:
        raise ValueError("--judge-url needs --judge, the name of the model there.")
    return None


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _print(summary: "PairSummary") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ..pairs.manifest import VERDICTS

    console = Console(highlight=False)
    table = Table(title=f"{summary.rows:,} rows, {summary.made:,} of them made now", title_justify="left")
    table.add_column("verdict")
    table.add_column("rows", justify="right")
    table.add_column("meaning")
    for verdict, count in sorted(summary.verdicts.items(), key=lambda item: -item[1]):
        table.add_row(verdict, f"{count:,}", VERDICTS[verdict])
    console.print(table)
    if summary.strengthened:
        console.print(f"Too mild at first and strengthened by a second degradation: {summary.strengthened:,}")
    for image_id, note in summary.notes:
        console.print(f"note: {escape(_short(image_id))}: {escape(note)}")
    for image_id, verdict, why in summary.problems:
        console.print(f"{verdict}: {escape(_short(image_id))}: {escape(str(why))}")
    if summary.unfinished:
        listed = f", of which {len(summary.problems)} are listed" if summary.unfinished > len(summary.problems) else ""
        console.print(f"Unfinished rows: {summary.unfinished:,}{listed}. They are kept; the same command tries again.")
    if summary.unused_decisions:
        console.print(f"Decisions about pairs that are not in these data: {summary.unused_decisions:,}")
    if summary.verdicts.get("too_mild"):
        console.print("Look at the pairs that are still too mild: q-hawkeye review, or leave them out by --drop-mild.")
    console.print(f"In {escape(str(summary.folder))}: the rows with degraded_image, pairs.parquet, README.md")


def _short(name: str) -> str:
    return name if len(name) <= 80 else f"{name[:77]}…"
