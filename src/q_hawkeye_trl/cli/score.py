"""`q-hawkeye score`: images in, scores out."""

import sys
from typing import Annotated, Any

import typer

SOME_UNREADABLE = 3
"""Exit status of a run that came to its end with images that could not be read."""


def score(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH…", help="Image files, folders, quoted globs, or a `datasets` folder.")
    ],
    model: Annotated[
        str | None,
        typer.Option(help="Folder or Hub name of a model or a LoRA adapter. Without it a bundled toy scores."),
    ] = None,
    out: Annotated[str | None, typer.Option(help="File to write: .jsonl, .csv or .parquet.")] = None,
    html: Annotated[str | None, typer.Option(help="Page with pictures, scores and reasoning to write.")] = None,
    rollouts: Annotated[
        int | None, typer.Option(min=1, help="Answers to each image, sampled. Without it one greedy answer.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the samples.")] = 0,
    reasoning: Annotated[bool, typer.Option("--reasoning", help="Put the reasoning into the file.")] = False,
    split: Annotated[str | None, typer.Option(help="Split of a `datasets` folder.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers generated at once.")] = 64,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 1024,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Largest image that the model sees. By default as it was trained.")
    ] = None,
    score_min: Annotated[float, typer.Option(help="Lower end of the scale.")] = 1.0,
    score_max: Annotated[float, typer.Option(help="Upper end of the scale.")] = 5.0,
    prompt: Annotated[str | None, typer.Option(help="Another question than the project's.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="auto, float32, bfloat16 or float16. By default auto; float32 on the CPU.")
    ] = None,
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
    Score the quality of images, from 1 (very poor) to 5 (excellent).

    A run that was interrupted goes on when the same command is given again. `accelerate launch -m q_hawkeye_trl
    score …` shares the images out over several processes. Exit status: 0 if every image was read, 3 if some could not
    be (they have their error in the file), 1 if the run did not come to its end, 2 for a wrong option.
    """
    from rich.console import Console

    from ..files import check_outputs
    from ..scoring.run import model_stamp, score_run
    from ..scoring.score_file import check_table_path
    from ..scoring.sources import find_images
    from ..scoring.summary import print_summary
    from .scorers import chosen_policy, launched_processes, make_scorer

    if out is not None:
        check_table_path(out)
    check_outputs(out, html, overwrite=overwrite)
    sources = find_images(paths, split)
    asked: dict[str, Any] = {
        "rollouts": rollouts,
        "seed": seed,
        "max_new_tokens": max_new_tokens,
        "max_pixels": max_pixels,
        "score_min": score_min,
        "score_max": score_max,
        "prompt": prompt,
        "dtype": dtype,
        "backend": backend,
    }
    processes, own_device = launched_processes()
    policy, name = chosen_policy(model, first=processes.number == 0)
    loading: dict[str, Any] = {
        "batch_size": batch_size,
        "attn_implementation": attn_implementation,
        "device": device or own_device,
        "trust_remote_code": trust_remote_code,
    }
    try:
        summary = score_run(
            lambda: make_scorer(policy, **asked, **loading),
            sources,
            settings={"model": name, "weights": model_stamp(policy), **asked},
            out=out,
            html=html,
            reasoning=reasoning,
            overwrite=overwrite,
            processes=processes,
            say=lambda text: print(text, file=sys.stderr),
        )
    except KeyboardInterrupt:
        if processes.number == 0:
            goes_on = "." if out is None else "; the same command goes on with what is done."
            print(f"\nInterrupted{goes_on}", file=sys.stderr)
        raise typer.Exit(130) from None
    if summary is None:
        return
    print_summary(summary, Console())
    for path in filter(None, (out, html)):
        print(f"wrote {path}")
    if summary.broken:
        raise typer.Exit(SOME_UNREADABLE)
