"""`q-hawkeye merge`: a LoRA adapter and its base become one model folder."""

from typing import Annotated

import typer


def merge(
    adapter: Annotated[str, typer.Argument(help="Folder of the LoRA adapter, or its name on the Hub.")],
    out: Annotated[str, typer.Option(help="Folder to write. It must not exist.")],
    dtype: Annotated[str, typer.Option(help="Precision of the merged weights; auto keeps the base's.")] = "auto",
) -> None:
    """
    Merge a LoRA adapter into its base model: a plain model folder with its processor. Scoring does not need it.
    """
    from transformers.utils import logging

    from ..scoring.policy import merge_adapter

    logging.disable_progress_bar()
    folder = merge_adapter(adapter, out, dtype=dtype)
    typer.echo(f"{folder}: a whole model, with its processor")
