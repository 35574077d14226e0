"""`q-hawkeye evaluate`: correlations and errors against mean opinion scores, with intervals, tables and a page."""

import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .score import SOME_UNREADABLE

Range = tuple[float, float]


# Options that belong to one of the two ways to get scores; given with the other they would do nothing.
_OF_DATA = [
    "model",
    "split",
    "rollouts",
    "batch_size",
    "max_new_tokens",
    "max_pixels",
    "dtype",
    "device",
    "attn_implementation",
    "backend",
    "trust_remote_code",
    "out",
]
_OF_FILES = ("score_range", "mos_range")


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
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub name of a model or a LoRA adapter. Without it a bundled toy.")
    ] = None,
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
    score_range: Annotated[Range, typer.Option(metavar="WORST BEST", help="Scale of the scores in --scores.")] = (
        1.0,
        5.0,
    ),
    mos_range: Annotated[
        Range, typer.Option(metavar="WORST BEST", help="Scale of the MOS in --scores; 1 0 where lower is better.")
    ] = (1.0, 5.0),
    draws: Annotated[int, typer.Option(min=2, help="Draws of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws and of sampled answers.")] = 0,
    pictures: Annotated[int, typer.Option(min=0, help="Worst cases of each set on the page.")] = 100,
    rollouts: Annotated[
        int | None, typer.Option(min=1, help="Answers to each image, sampled. Without it one greedy answer.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers generated at once.")] = 64,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 1024,
    max_pixels: Annotated[int | None, typer.Option(min=1, help="Largest image that the model sees.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    device: Annotated[
        str | None, typer.Option(help="For example cpu or cuda:1. By default the accelerator, if there is one.")
    ] = None,
    attn_implementation: Annotated[str | None, typer.Option(help="For example flash_attention_2.")] = None,
    backend: Annotated[str, typer.Option(help="transformers or vllm.")] = "transformers",
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run the model's own code.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace existing outputs and unfinished scores.")
    ] = False,
) -> None:
    """
    Evaluate scores against mean opinion scores.

    PLCC raw and after the 4-parameter logistic fit, SRCC, KRCC, RMSE and MAE, each with a 95% interval, by reference
    where there is a `group` column; the share of answers with a score, and the figures with failures counted as 3;
    what the spread says of the error. Exit status: 0, 3 if some images could not be read, 1 for bad input.
    """
    from ..evaluation.public_sets import get_preset
    from ..evaluation.score_tables import read_tables
    from ..files import check_outputs

    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    scores, data = _inputs(scores, data, further, given)
    protocol = None if preset is None else get_preset(preset)
    check_outputs(json_out, markdown_out, html, out, overwrite=overwrite)
    ranges = {"score_range": score_range, "mos_range": mos_range}
    others = [table for file in compare or () for table in read_tables(file, **ranges)]
    job: dict[str, Any] = {
        "preset": protocol,
        "others": others,
        "other_name": ", ".join(Path(file).stem for file in compare or ()),
        "published": published,
        "draws": draws,
        "seed": seed,
    }
    outputs = {"json": json_out, "markdown": markdown_out, "html": html, "pictures": pictures}
    if scores:
        tables = [table for file in scores for table in read_tables(file, **ranges)]
        _report(tables, job, outputs, {"scores": ", ".join(Path(file).name for file in scores)})
        return
    asked = {
        "rollouts": rollouts,
        "seed": seed,
        "max_new_tokens": max_new_tokens,
        "max_pixels": max_pixels,
        "dtype": dtype,
        "backend": backend,
    }
    loading = {
        "batch_size": batch_size,
        "device": device,
        "attn_implementation": attn_implementation,
        "trust_remote_code": trust_remote_code,
    }
    _score_and_report(data, model, split, out, overwrite, asked, loading, job, outputs)


def _inputs(
    scores: list[str] | None, data: list[str] | None, further: list[str] | None, given: set[str]
) -> tuple[list[str], list[str]]:
    """The files and the folders; `--data A B` gives the second one as an argument."""
    if bool(scores) == bool(data):
        raise ValueError("Name either files of scores (--scores FILE…) or prepared data (--model M --data DIR…).")
    idle = [name for name in _OF_DATA if scores and name in given]
    if idle:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
        raise ValueError(f"--scores needs no {options}: the file holds its scores; --data DIR… has images to score.")
    idle = [name for name in _OF_FILES if data and name in given and "compare" not in given]
    if idle:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
        raise ValueError(f"{options} names a scale in the files of --scores or --compare; --data has its own, 1 to 5.")
    more = list(further or ())
    return (scores + more, []) if scores else ([], (data or []) + more)


def _score_and_report(
    data: list[str],
    model: str | None,
    split: str | None,
    out: str | None,
    overwrite: bool,
    asked: dict,
    loading: dict,
    job: dict,
    outputs: dict,
) -> None:
    from ..evaluation.results import matched
    from ..report.labelled import find_labelled, score_labelled, tables_of, unscored_tables, write_rows
    from ..scoring.run import model_stamp, scores_folder
    from .scorers import chosen_policy, launched_processes, make_scorer

    images = find_labelled(data, split=split, preset=job["preset"])
    matched(unscored_tables(images), job["others"], job["other_name"])  # before hours are spent on the scores
    processes, own_device = launched_processes()
    loading["device"] = loading["device"] or own_device
    policy, name = chosen_policy(model, first=processes.number == 0)
    try:
        with scores_folder(out, processes) as folder:
            scored = score_labelled(
                images,
                lambda: make_scorer(policy, **asked, **loading),
                settings={"model": name, "weights": model_stamp(policy), **asked},
                folder=folder,
                overwrite=overwrite,
                processes=processes,
                say=lambda text: print(text, file=sys.stderr),
            )
            if scored is None:  # not the first process
                return
            tables, rows = tables_of(images, scored)
            if out is not None:
                write_rows(out, rows)
                shutil.rmtree(folder, ignore_errors=True)
    except KeyboardInterrupt:
        if processes.number == 0:
            goes_on = "." if out is None else "; the same command goes on with what is done."
            print(f"\nInterrupted{goes_on}", file=sys.stderr)
        raise typer.Exit(130) from None
    facts = {"model": name, "answers": "greedy" if asked["rollouts"] is None else f"{asked['rollouts']} rollouts"}
    by_image = {(label["dataset"], label["image_id"]): each for label, each in zip(images.labels, scored, strict=True)}
    _report(tables, job, outputs, facts, scored=by_image, picture_of=images.picture)
    if out is not None:
        print(f"wrote {out}")
    broken = sum(each.error is not None for each in scored)
    if broken:
        print(f"{broken} of {len(scored)} images could not be read.", file=sys.stderr)
        raise typer.Exit(SOME_UNREADABLE)


def _report(tables: list, job: dict, outputs: dict, facts: dict, **page: Any) -> None:
    from rich.console import Console

    from ..evaluation.results import as_json, evaluate_sets
    from ..files import write_atomically, write_json
    from ..report.page import write_page
    from ..report.sections import markdown_report, print_report

    preset = job["preset"]
    results = evaluate_sets(tables, **job, say=lambda name: print(f"Evaluating {name!r} …", file=sys.stderr))
    print_report(results, Console(), preset)
    title = "Image quality evaluation"
    if outputs["json"] is not None:
        write_json(outputs["json"], as_json(results, preset))
    if outputs["markdown"] is not None:
        write_atomically(outputs["markdown"], markdown_report(results, title=title, preset=preset))
    if outputs["html"] is not None:
        facts |= {"sets": len(results), "images": sum(len(table) for table in tables), "draws": job["draws"]}
        write_page(
            outputs["html"],
            results,
            title=title,
            facts=facts,
            preset=preset,
            pictures=outputs["pictures"],
            **page,
        )
    for kind in ("json", "markdown", "html"):
        if outputs[kind] is not None:
            print(f"wrote {outputs[kind]}")
