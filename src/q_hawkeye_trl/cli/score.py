"""`q-hawkeye score`: images in, scores out; and what `evaluate` shares with it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..question import Question
    from ..scoring.run import ScoringJob

SOME_UNREADABLE = 3
"""Exit status of a run that ended with images that could not be read."""

MODEL = typer.Option(help="Folder or Hub name of a model or a LoRA adapter. By default the bundled toy policy.")
ROLLOUTS = typer.Option(min=1, help="Sampled answers per image. By default one greedy answer.")
BATCH_SIZE = typer.Option(min=1, help="Answers generated at once.")
LENGTH = typer.Option(min=1, help="Longest answer, in tokens.")
PIXELS = typer.Option(min=1, help="Largest image that the model sees. By default the limit of its training.")
DTYPE = typer.Option(help="auto, float32, bfloat16 or float16. By default auto; float32 on the CPU.")
DEVICE = typer.Option(help="For example cpu or cuda:1. By default the accelerator, if there is one.")
ATTENTION = typer.Option(help="For example flash_attention_2.")
BACKEND = typer.Option(help="transformers or vllm.")
REMOTE_CODE = typer.Option("--trust-remote-code", help="Run the model's own code.")
OVERWRITE = typer.Option("--overwrite", help="Replace existing outputs and unfinished scores.")


def score(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH…", help="Image files, folders, quoted globs, or a `datasets` folder.")
    ],
    model: Annotated[str | None, MODEL] = None,
    out: Annotated[str | None, typer.Option(help="File to write: .jsonl, .csv or .parquet.")] = None,
    html: Annotated[str | None, typer.Option(help="Page to write, with pictures, scores and reasoning.")] = None,
    rollouts: Annotated[int | None, ROLLOUTS] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the samples.")] = 0,
    reasoning: Annotated[bool, typer.Option("--reasoning", help="Write the reasoning to the file.")] = False,
    split: Annotated[str | None, typer.Option(help="Split of a `datasets` folder.")] = None,
    batch_size: Annotated[int, BATCH_SIZE] = 64,
    max_new_tokens: Annotated[int, LENGTH] = 1024,
    max_pixels: Annotated[int | None, PIXELS] = None,
    score_min: Annotated[float | None, typer.Option(help="Lower end of the scale, if not the model's.")] = None,
    score_max: Annotated[float | None, typer.Option(help="Upper end of the scale, if not the model's.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Question that replaces the model's.")] = None,
    score_parser: Annotated[
        str | None, typer.Option(help="Reader of scores, if not the model's: number, boxed or module:function.")
    ] = None,
    dtype: Annotated[str | None, DTYPE] = None,
    device: Annotated[str | None, DEVICE] = None,
    attn_implementation: Annotated[str | None, ATTENTION] = None,
    backend: Annotated[str, BACKEND] = "transformers",
    trust_remote_code: Annotated[bool, REMOTE_CODE] = False,
    overwrite: Annotated[bool, OVERWRITE] = False,
) -> None:
    """
    Score the quality of images with the question that the model was trained on, by default from 1 to 5.

    The same command resumes an interrupted run. `accelerate launch -m q_hawkeye_trl score …` distributes the images
    over several processes. Exit status: 0 if every image was read, 3 if some could not be (the file has their
    errors), 1 if the run failed, 2 for a wrong option.
    """
    from rich.console import Console

    from ..io.outputs import check_outputs
    from ..scoring.run import score_run
    from ..scoring.score_file import check_table_path
    from ..scoring.sources import find_images
    from ..scoring.summary import print_summary

    if out is not None:
        check_table_path(out)
    check_outputs(out, html, overwrite=overwrite)
    sources = find_images(paths, split)
    job, _ = scoring_job(
        model,
        asked={"prompt": prompt, "score_min": score_min, "score_max": score_max, "parser": score_parser},
        max_pixels=max_pixels,
        sampling={"rollouts": rollouts, "seed": seed, "max_new_tokens": max_new_tokens},
        loading={"dtype": dtype, "backend": backend},
        placing={"batch_size": batch_size, "device": device, "attn_implementation": attn_implementation},
        trust_remote_code=trust_remote_code,
        overwrite=overwrite,
    )
    with reported_interrupt(job, out):
        summary = score_run(job, sources, out=out, html=html, reasoning=reasoning)
    if summary is None:
        return
    print_summary(summary, Console())
    for path in filter(None, (out, html)):
        print(f"wrote {path}")
    if summary.broken:
        raise typer.Exit(SOME_UNREADABLE)


def scoring_job(
    model: str | None,
    *,
    asked: dict[str, Any],
    max_pixels: int | None,
    sampling: dict[str, Any],
    loading: dict[str, Any],
    placing: dict[str, Any],
    trust_remote_code: bool,
    overwrite: bool,
) -> "tuple[ScoringJob, Question]":
    """Return the job of a scoring command, and its question: the one saved with the model, with `asked` applied."""
    from ..demo.policy import demo_policy_path
    from ..scoring.policy import find_question
    from ..scoring.run import ScoringJob, model_stamp

    processes, own_device = _launched_processes()
    policy = str(demo_policy_path()) if model is None else model
    if model is None and processes.number == 0:
        print(
            "No --model: the bundled toy policy scores (0.8 million parameters, trained on synthetic pictures). It "
            "shows how things work; its scores of photographs mean little.",
            file=sys.stderr,
        )
    question = find_question(policy, trust_remote_code=trust_remote_code, max_pixels=max_pixels, **asked)
    settings = {
        "model": "bundled toy policy" if model is None else model,
        "weights": model_stamp(policy),
        **sampling,
        **asdict(question),
        **loading,
    }
    placing["device"] = placing["device"] or own_device

    def load_scorer():
        from transformers.utils import logging

        from ..scoring.scorer import HawkeyeScorer

        logging.disable_progress_bar()  # of loading weights
        own = asdict(question)
        try:
            return HawkeyeScorer(
                policy,
                score_parser=own.pop("parser"),
                trust_remote_code=trust_remote_code,
                **own,
                **sampling,
                **loading,
                **placing,
            )
        except ImportError as error:
            if loading["backend"] == "vllm":  # not installed
                raise ValueError(str(error)) from error
            raise

    job = ScoringJob(
        load_scorer, settings, processes=processes, overwrite=overwrite, say=lambda text: print(text, file=sys.stderr)
    )
    return job, question


@contextmanager
def reported_interrupt(job: "ScoringJob", out: str | None) -> Iterator[None]:
    """On Ctrl-C, exit with status 130 and one line instead of a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        if job.processes.number == 0:
            advice = "." if out is None else "; the same command resumes from the finished scores."
            print(f"\nInterrupted{advice}", file=sys.stderr)
        raise typer.Exit(130) from None


def _launched_processes():
    """Return the launched processes and this one's device; without a launcher one process and `None`."""
    import atexit
    import os
    from datetime import timedelta

    from ..scoring.run import Processes

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(), None
    import torch
    from accelerate import PartialState

    # a finished process may wait long for the others
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=7))
    atexit.register(state.destroy_process_group)
    return Processes(state.process_index, state.num_processes, state.wait_for_everyone), state.device
