"""`q-hawkeye evaluate`: correlations and errors against mean opinion scores, with intervals, tables and a page."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .score import (
    ATTENTION,
    BACKEND,
    BATCH_SIZE,
    DEVICE,
    DTYPE,
    LENGTH,
    MODEL,
    OVERWRITE,
    PIXELS,
    REMOTE_CODE,
    ROLLOUTS,
    SOME_UNREADABLE,
    reported_interrupt,
    scoring_job,
)

Range = tuple[float, float]

# Options of --data, refused with --scores because they would have no effect.
_OF_DATA = ["model", "split", "rollouts", "batch_size", "max_new_tokens", "max_pixels", "dtype", "device"]
_OF_DATA += ["attn_implementation", "backend", "trust_remote_code", "out"]


def evaluate(
    context: typer.Context,
    further: Annotated[
        list[str] | None, typer.Argument(metavar="DIR|FILE", help="Further folders or files of the same option.")
    ] = None,
    scores: Annotated[
        list[str] | None,
        typer.Option(help="CSV or JSONL with image_id, score, mos and optionally spread, group, dataset, distortion."),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Folder of prepared data, whose images --model scores first.")
    ] = None,
    model: Annotated[str | None, MODEL] = None,
    preset: Annotated[
        str | None, typer.Option(help="Protocol of a paper: deqa, pyiqa or mr-iqa (split, labels, fit).")
    ] = None,
    published: Annotated[bool, typer.Option("--published", help="Quote published figures beside these.")] = False,
    compare: Annotated[
        list[str] | None, typer.Option(help="Scores of another model for the same images: paired differences.")
    ] = None,
    json_out: Annotated[str | None, typer.Option("--json", help="JSON file to write.")] = None,
    markdown_out: Annotated[str | None, typer.Option("--markdown", help="Markdown file to write.")] = None,
    html: Annotated[str | None, typer.Option(help="Page with plots and the worst cases to write.")] = None,
    out: Annotated[
        str | None, typer.Option(help="JSONL of scores and labels to write with --data; --scores reads it again.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of --data. By default the preset's, else test.")] = None,
    score_range: Annotated[
        Range | None, typer.Option(metavar="WORST BEST", help="Scale of the scores in --scores.")
    ] = (None),
    mos_range: Annotated[
        Range | None,
        typer.Option(metavar="WORST BEST", help="Scale of the MOS, if not 1 5; 1 0 where lower is better."),
    ] = None,
    draws: Annotated[int, typer.Option(min=2, help="Draws of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws and of sampled answers.")] = 0,
    pictures: Annotated[int, typer.Option(min=0, help="Worst cases of each set on the page.")] = 100,
    rollouts: Annotated[int | None, ROLLOUTS] = None,
    batch_size: Annotated[int, BATCH_SIZE] = 64,
    max_new_tokens: Annotated[int, LENGTH] = 1024,
    max_pixels: Annotated[int | None, PIXELS] = None,
    dtype: Annotated[str | None, DTYPE] = None,
    device: Annotated[str | None, DEVICE] = None,
    attn_implementation: Annotated[str | None, ATTENTION] = None,
    backend: Annotated[str, BACKEND] = "transformers",
    trust_remote_code: Annotated[bool, REMOTE_CODE] = False,
    overwrite: Annotated[bool, OVERWRITE] = False,
) -> None:
    """
    Evaluate scores against mean opinion scores.

    PLCC raw and after the 4-parameter logistic fit, SRCC, KRCC, RMSE and MAE on the scale of 1 to 5, each with a 95%
    interval, by reference if there is a `group` column; the share of answers with a score, and the figures with
    failures counted as 3; how well the spread predicts the error. Exit status: 0, 3 if some images could not be read,
    1 for bad input.
    """
    from ..evaluation.public_sets import get_preset
    from ..evaluation.score_tables import SCALE, read_tables
    from ..io.outputs import check_outputs

    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    scores, data = _inputs(scores, data, further, given)
    protocol = None if preset is None else get_preset(preset)
    check_outputs(json_out, markdown_out, html, out, overwrite=overwrite)
    ranges = {"score_range": score_range or SCALE, "mos_range": mos_range or SCALE}
    analysis: dict[str, Any] = {
        "preset": protocol,
        "others": [table for file in compare or () for table in read_tables(file, **ranges)],
        "other_name": ", ".join(Path(file).stem for file in compare or ()),
        "published": published,
        "draws": draws,
        "seed": seed,
    }
    outputs = {"json": json_out, "markdown": markdown_out, "html": html, "pictures": pictures}
    if scores:
        tables = [table for file in scores for table in read_tables(file, **ranges)]
        _report(tables, analysis, outputs, {"scores": ", ".join(Path(file).name for file in scores)})
        return

    from ..evaluation.results import matched
    from ..scoring.labelled import find_labelled, held_out_figures, tables_of, unscored_tables, write_rows

    images = find_labelled(data, split=split, preset=protocol)
    job, question = scoring_job(
        model,
        asked={},
        max_pixels=max_pixels,
        sampling={"rollouts": rollouts, "seed": seed, "max_new_tokens": max_new_tokens},
        loading={"dtype": dtype, "backend": backend},
        placing={"batch_size": batch_size, "device": device, "attn_implementation": attn_implementation},
        trust_remote_code=trust_remote_code,
        overwrite=overwrite,
    )
    ends = {"mos_range": mos_range}
    # fail before the scoring, which can take hours
    matched(unscored_tables(images, question, **ends), analysis["others"], analysis["other_name"])
    with reported_interrupt(job, out), job.scored(images.sources, out) as finished:
        if finished is None:
            return
        scored = list(finished.scored(images.sources))
        tables, rows = tables_of(images, scored, question, **ends)
        if out is not None:
            write_rows(out, rows)
    answers = "greedy" if rollouts is None else f"{rollouts} rollouts"
    by_image = {(label["dataset"], label["image_id"]): each for label, each in zip(images.labels, scored, strict=True)}
    _report(
        tables,
        analysis,
        outputs,
        {"model": job.settings["model"], "answers": answers},
        held_out=held_out_figures(images, scored, question, sampled=rollouts is not None),
        scored=by_image,
        picture_of=images.picture,
    )
    if out is not None:
        print(f"wrote {out}")
    broken = sum(each.error is not None for each in scored)
    if broken:
        print(f"{broken} of {len(scored)} images could not be read.", file=sys.stderr)
        raise typer.Exit(SOME_UNREADABLE)


def _inputs(
    scores: list[str] | None, data: list[str] | None, further: list[str] | None, given: set[str]
) -> tuple[list[str], list[str]]:
    """Return the files and the folders; in `--data A B`, B arrives as an argument."""
    if bool(scores) == bool(data):
        raise ValueError("Name either files of scores (--scores FILE…) or prepared data (--model M --data DIR…).")
    idle = [name for name in _OF_DATA if scores and name in given]
    if idle:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
        raise ValueError(f"--scores needs no {options}: the file has its scores; --data DIR… has images to score.")
    if data and "score_range" in given and "compare" not in given:
        raise ValueError("--score-range is the scale in the files of --scores or --compare; --data has the model's.")
    more = list(further or ())
    return (scores + more, []) if scores else ([], (data or []) + more)


def _report(
    tables: list, analysis: dict, outputs: dict, facts: dict, held_out: dict[str, dict] | None = None, **page: Any
) -> None:
    from rich.console import Console

    from ..evaluation.results import as_json, evaluate_sets
    from ..io.atomic import write_json, write_text
    from ..report.page import write_page
    from ..report.sections import markdown_report, print_report

    preset = analysis["preset"]
    results = evaluate_sets(tables, **analysis, say=lambda name: print(f"Evaluating {name!r} …", file=sys.stderr))
    print_report(results, Console(), preset)
    title = "Image quality evaluation"
    if outputs["json"] is not None:
        figures = as_json(results, preset)
        for name, each in (held_out or {}).items():
            figures[name]["held_out"] = each
        write_json(outputs["json"], figures)
    if outputs["markdown"] is not None:
        write_text(outputs["markdown"], markdown_report(results, title=title, preset=preset))
    if outputs["html"] is not None:
        facts |= {"sets": len(results), "images": sum(len(table) for table in tables), "draws": analysis["draws"]}
        options = {"title": title, "facts": facts, "preset": preset, "pictures": outputs["pictures"]}
        write_page(outputs["html"], results, **options, **page)
    for kind in ("json", "markdown", "html"):
        if outputs[kind] is not None:
            print(f"wrote {outputs[kind]}")
