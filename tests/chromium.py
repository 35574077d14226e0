"""Pages in a headless Chromium: dialogs, console messages and requests."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

EXECUTABLE = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = (
    "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
    "disable-component-update disable-sync"
)
ARGUMENTS = [f"--{flag}" for flag in _FLAGS.split()]

needs_chromium = pytest.mark.skipif(EXECUTABLE is None, reason="needs Chromium, and none is installed")


@dataclass
class Seen:
    """A page in the browser, and what it did."""

    page: Any
    dialogs: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)
    """Requests that the page's policy blocked; they are in `requests` too."""


@contextmanager
def opened(page: Path | str, profile: Path, *, width: int = 1280, height: int = 800) -> Iterator[Seen]:
    """Open a local HTML file or a URL, with an empty folder for the browser's profile."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=EXECUTABLE, args=ARGUMENTS, viewport={"width": width, "height": height}
        )
        try:
            seen = Seen(context.new_page())
            seen.page.on("dialog", lambda dialog: (seen.dialogs.append(dialog.message), dialog.dismiss()))
            seen.page.on("console", lambda message: seen.console.append(message.text))
            seen.page.on("pageerror", lambda error: seen.console.append(str(error)))
            seen.page.on(
                "requestfailed", lambda request: request.failure == "csp" and seen.blocked.append(request.url)
            )
            seen.page.on("request", lambda request: seen.requests.append(request.url))
            seen.page.goto(page if isinstance(page, str) else page.as_uri())
            yield seen
        finally:
            context.close()
