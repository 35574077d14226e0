"""`q-hawkeye train`: a policy learns image quality, from a recipe."""

import typer


def train(context: typer.Context) -> None:
    """
    Train a policy with a recipe; without options, the bundled one on a synthetic set.

    Every key of a recipe is an option: `q-hawkeye train --help` lists them.
    """
    from ..train.command import main

    main(context.args)
