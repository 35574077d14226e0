"""`q-hawkeye doctor`: is this environment fit for a run, and what is to be done if not."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..doctor.examination import Examination

A_PROBLEM = 1
"""Exit status with at least one problem; warnings alone end with 0."""


def doctor(
    config: Annotated[
        str | None, typer.Option(help="Recipe of the run; it names the rest too, where you don't.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model: a folder, or a name on the Hub.")] = None,
    data: Annotated[str | None, typer.Option(help="Folder of prepared data, or of KonIQ-10k.")] = None,
    output_dir: Annotated[
        str | None, typer.Option("--output_dir", "--output-dir", help="Folder that the run would write to.")
    ] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write everything to this file too. It must not exist.")
    ] = None,
    online: Annotated[
        bool, typer.Option("--online", help="Fetch the model's config and processor where the cache lacks them.")
    ] = False,
    fingerprint: Annotated[
        bool, typer.Option("--fingerprint", help="Hash the data as a run does, which reads every image.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of --json.")] = False,
) -> None:
    """
    Check packages, GPUs, attention, DeepSpeed, disk, model, data and recipe, and say what to do about what is wrong.

    Ends with status 1 where a run would fail, with 0 otherwise. Nothing is fetched or left behind.
    """
    from ..doctor.examination import examine
    from ..files import check_output, write_json
    from ..run_facts.settings import hide_secrets

    if json_out is not None:
        check_output(json_out, overwrite=overwrite)
    result = examine(
        config=config, model=model, data=data, output_dir=output_dir, online=online, fingerprint=fingerprint
    )
    _print(result)
    if json_out is not None:
        findings = [hide_secrets(finding._asdict()) for finding in result.findings]
        write_json(json_out, {"findings": findings, "facts": result.facts})
        print(f"wrote {json_out}")
    if any(finding.level == "problem" for finding in result.findings):
        raise typer.Exit(A_PROBLEM)


def _print(result: "Examination") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..doctor.finding import LEVELS
    from ..run_facts.log import describe_facts
    from ..run_facts.settings import hide_secrets

    console = Console(highlight=False, soft_wrap=False)
    facts = Table.grid(padding=(0, 2))
    for name, fact in describe_facts(result.facts).items():
        facts.add_row(name, Text(fact))
    console.print(facts)
    console.print()
    styles = dict(zip(LEVELS, ("green", "yellow", "bold red"), strict=True))
    table = Table.grid(padding=(0, 2))
    for finding in result.findings:
        text = Text(_safe(finding.text, hide_secrets))
        if finding.advice:
            text.append(f"\n-> {_safe(finding.advice, hide_secrets)}", style=styles[finding.level])
        table.add_row(Text(finding.level, style=styles[finding.level]), finding.area, text)
    console.print(table)
    counts = {level: sum(finding.level == level for finding in result.findings) for level in LEVELS}
    console.print(
        f"\n{counts['problem']} problem{'s' * (counts['problem'] != 1)}, "
        f"{counts['warning']} warning{'s' * (counts['warning'] != 1)}, {counts['ok']} ok"
    )


def _safe(text: str, hide: Any) -> str:
    """A text for the terminal: no secrets, no control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in hide(text))
