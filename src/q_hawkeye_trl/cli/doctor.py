"""`q-hawkeye doctor`: check the environment before a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..doctor.examination import Examination

A_PROBLEM = 1
"""Exit status with at least one problem; warnings alone end with 0."""


def doctor(
    config: Annotated[
        str | None, typer.Option(help="Recipe of the run; it supplies the model, data and folder that are not named.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model: a folder, or a name on the Hub.")] = None,
    data: Annotated[str | None, typer.Option(help="Folder of prepared data, or of KonIQ-10k.")] = None,
    output_dir: Annotated[
        str | None, typer.Option("--output_dir", "--output-dir", help="Folder that the run would write to.")
    ] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Also write everything to this file. It must not exist.")
    ] = None,
    online: Annotated[
        bool, typer.Option("--online", help="Download the model's config and processor if they are not cached.")
    ] = False,
    fingerprint: Annotated[
        bool, typer.Option("--fingerprint", help="Hash the data as a run does, which reads every image.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of --json.")] = False,
) -> None:
    """
    Check packages, GPUs, attention, DeepSpeed, disk, model, data and recipe, and advise how to fix what is wrong.

    Exits with status 1 if a run would fail, with 0 otherwise. Nothing is downloaded or left behind.
    """
    from ..doctor import PROBLEM, Plan
    from ..doctor.examination import examine
    from ..io.atomic import write_json
    from ..io.outputs import check_outputs
    from ..run_facts.settings import hide_secrets

    check_outputs(json_out, overwrite=overwrite)
    plan = Plan(config=config, model=model, data=data, output_dir=output_dir, online=online)
    result = examine(plan, fingerprint=fingerprint)
    _print(result)
    if json_out is not None:
        findings = [hide_secrets(finding._asdict()) for finding in result.findings]
        write_json(json_out, {"findings": findings, "facts": result.facts})
        print(f"wrote {json_out}")
    if any(finding.level == PROBLEM for finding in result.findings):
        raise typer.Exit(A_PROBLEM)


def _print(result: "Examination") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..doctor import LEVELS
    from ..run_facts.launches import describe_facts

    console, facts, findings = Console(highlight=False), Table.grid(padding=(0, 2)), Table.grid(padding=(0, 2))
    for name, fact in describe_facts(result.facts).items():
        facts.add_row(name, Text(fact))
    styles = dict(zip(LEVELS, ("green", "yellow", "bold red"), strict=True))
    for finding in result.findings:
        style = styles[finding.level]
        text = Text(_safe(finding.text))
        if finding.advice:
            text.append(f"\n-> {_safe(finding.advice)}", style=style)
        findings.add_row(Text(finding.level, style=style), finding.area, text)
    ok, warnings, problems = (sum(finding.level == level for finding in result.findings) for level in LEVELS)
    console.print(facts, "", findings, "", sep="\n")
    console.print(f"{problems} problem{'s' * (problems != 1)}, {warnings} warning{'s' * (warnings != 1)}, {ok} ok")


def _safe(text: str) -> str:
    """The text without secrets and control characters."""
    from ..run_facts.settings import hide_secrets

    return "".join(letter if letter.isprintable() else " " for letter in hide_secrets(text))
