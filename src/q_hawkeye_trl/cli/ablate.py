"""`q-hawkeye ablate`: several recipes are trained over the same seeds and compared."""

import typer


def ablate(context: typer.Context) -> None:
    """Train several recipes over the same seeds and compare them on one page."""
    from ..train.ablation_runs import main

    main(context.args)
