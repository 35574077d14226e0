"""`q-hawkeye`, the command line: one module a command, which only reads options and calls the library."""

import sys

import typer

from .. import __version__
from . import prepare
from .ablate import ablate
from .doctor import doctor
from .evaluate import evaluate
from .merge import merge
from .pair import pair
from .review import review
from .score import score
from .train import train

app = typer.Typer(
    name="q-hawkeye",
    help="Image quality assessment with vision-language models: data, training, scores, evaluation.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.add_typer(prepare.app, name="prepare")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Options before the command."""


# commands that read their options with TRL's parser
_PARSES_ITSELF = {"ignore_unknown_options": True, "allow_extra_args": True}

app.command(context_settings=_PARSES_ITSELF, add_help_option=False)(train)
app.command(context_settings=_PARSES_ITSELF, add_help_option=False)(ablate)
app.command()(score)
app.command()(merge)
app.command()(evaluate)
app.command()(pair)
app.command()(review)
app.command()(doctor)


def main() -> None:
    """Runs the command line. Bad input ends in its message and exit status 1; a traceback means a defect of ours."""
    try:
        app()
    except (ValueError, OSError) as error:
        print(f"q-hawkeye: {error}", file=sys.stderr)
        sys.exit(1)
