"""`q-hawkeye review`: a page on which people accept or reject pairs."""

from pathlib import Path
from typing import Annotated

import typer


def review(
    folder: Annotated[Path, typer.Argument(help="Folder that `q-hawkeye pair` wrote.")],
    decisions: Annotated[
        Path | None, typer.Option(help="File of decisions; by default FOLDER/decisions.jsonl.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; by default this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 picks a free one.")] = 7860,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Show originals behind symbolic links that leave their folder.")
    ] = False,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """
    Show pairs side by side or under a slider, and record which ones people accept or reject.

    Each decision is on disk before the next pair appears. Apply them with `q-hawkeye pair --decisions`.
    """
    from ..pairs.review_page import serve_review

    try:
        serve_review(folder, decisions, host=host, port=port, follow_links=follow_links, open_browser=open_browser)
    except ImportError as error:
        typer.echo(f"q-hawkeye: {error}", err=True)
        raise typer.Exit(1) from error
