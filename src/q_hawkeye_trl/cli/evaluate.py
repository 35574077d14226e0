"""`q-hawkeye evaluate`: correlations and errors against mean opinion scores, with intervals, tables and a page."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .score import SOME_UNREADABLE

Range = tuple[float, float]


def evaluate(
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
    backend: Annotated[str, typer.Option(help="transformers or vllm.")] = "transformers",
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run the model's own code.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")] = False,
) -> None:
    """
    Evaluate scores against mean opinion scores.

    PLCC raw and after the 4-parameter logistic fit, SRCC, KRCC, RMSE and MAE, each with a 95% interval, by reference
    where there is a `group` column; the share of answers with a score, and the figures with failures counted as 3;
    what the spread says of the error. Exit status: 0, 3 if some images could not be read, 1 for bad input.
    """
    from ..evaluation.presets import get_preset
    from ..evaluation.tables import read_tables
    from ..files import check_output

    scores, data = _inputs(scores, data, further, model, out)
    protocol = None if preset is None else get_preset(preset)
    for path in filter(None, (json_out, markdown_out, html, out)):
        check_output(path, overwrite=overwrite)
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
    _score_and_report(
        data, model, split, out, asked, job, outputs, batch_size=batch_size, trust_remote_code=trust_remote_code
    )


def _inputs(
    scores: list[str] | None, data: list[str] | None, further: list[str] | None, model: str | None, out: str | None
) -> tuple[list[str], list[str]]:
    """The files and the folders; `--data A B` gives the second one as an argument."""
    if bool(scores) == bool(data):
        raise ValueError("Name either files of scores (--scores FILE…) or prepared data (--model M --data DIR…).")
    if scores and model is not None:
        raise ValueError("--scores needs no --model: the file holds its scores; --data DIR… has images to score.")
    if scores and out is not None:
        raise ValueError("--out keeps the scores that --data makes; with --scores they stand in a file already.")
    more = list(further or ())
    return (scores + more, []) if scores else ([], (data or []) + more)


def _score_and_report(
    data: list[str],
    model: str | None,
    split: str | None,
    out: str | None,
    asked: dict,
    job: dict,
    outputs: dict,
    **loading: Any,
) -> None:
    import shutil
    import tempfile

    from ..demo.policy import demo_policy_path
    from ..report.labelled import find_labelled, score_labelled, tables_of, write_rows
    from .score import _processes

    images = find_labelled(data, split=split, preset=job["preset"])
    processes, device = _processes()
    first = processes.number == 0
    if model is None and first:
        print("No --model: the bundled toy policy scores; what it says of photographs means little.", file=sys.stderr)
    if out is None and processes.count > 1:
        raise ValueError("Several processes need a file where their scores meet: name one by --out.")

    def load():
        from transformers.utils import logging

        from ..scoring.scorer import HawkeyeScorer

        logging.disable_progress_bar()  # of the loading of weights
        return HawkeyeScorer(model or demo_policy_path(), device=device, **asked, **loading)

    name = model or "bundled toy policy"
    folder = tempfile.mkdtemp(prefix="q-hawkeye-") if out is None else f"{out}.partial"
    try:
        scored = score_labelled(images, load, settings={"model": name, **asked}, folder=folder, processes=processes)
    except KeyboardInterrupt:
        print("\nInterrupted." + ("" if out is None else " The same command goes on."), file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        if out is None:
            shutil.rmtree(folder, ignore_errors=True)
    if scored is None:  # not the first process
        return
    tables, rows = tables_of(images, scored)
    if out is not None:
        write_rows(out, rows)
        shutil.rmtree(folder, ignore_errors=True)
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
    from ..report.markdown import markdown_report
    from ..report.page import write_page
    from ..report.terminal import print_report

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
