"""What stands between the network and Gradio's many routes: only those that the page needs."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_FILE = "/gradio_api/file="
_API = "/gradio_api"
# Of the many routes there (uploads, proxying, recordings, calls by name, profiling, editing of the page, …).
_NEEDED = tuple(
    f"{_API}/{name}"
    for name in (
        "app_id",
        "cancel",
        "heartbeat/",
        "info",
        "login_check",
        "queue/",
        "reset",
        "startup-events",
        "theme.css",
    )
)
_REFUSED = ("/login", "/logout", "/monitoring", "/proxy=", "/upload")
_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; frame-ancestors 'none'"
)


class OnlyThePage:
    """
    ASGI middleware: lets through the routes that the page needs, of files the page's own copies of pictures alone, and
    tells the browser to load nothing from elsewhere.

    Args:
        app (`Callable`):
            The application.
        cache (`Path`):
            Folder of those copies.
        hosts (`Sequence[str]`, *optional*):
            Names by which the page may be called. Without them a foreign site whose name is made to point at this
            machine could read a page that listens on the loopback only. By default any.
    """

    def __init__(self, app: Any, cache: Path, hosts: Sequence[str] | None = None):
        self.app = app
        self.cache = os.path.realpath(cache)
        self.hosts = hosts

    @classmethod
    def entry(cls, cache: Path, hosts: Sequence[str] | None = None) -> Any:
        """The middleware as Gradio's `app_kwargs` take it."""
        from starlette.middleware import Middleware

        return Middleware(cls, cache=cache, hosts=hosts)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if not self.allows(scope["path"]) or not self.is_called_by_name(scope.get("headers", [])):
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"Only the page and its own pictures are served.\n"})
            return

        async def send_with_policy(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _POLICY.encode())
                message = {**message, "headers": [*message.get("headers", []), policy]}
            await send(message)

        await self.app(scope, receive, send_with_policy)

    def is_called_by_name(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """
        Tells whether a request names one of the hosts.

        Args:
            headers (`Sequence[tuple[bytes, bytes]]`):
                Headers of the request.

        Returns:
            `bool`
        """
        if self.hosts is None:
            return True
        named = [value.decode("latin-1") for name, value in headers if name.lower() == b"host"]
        try:
            return len(named) == 1 and urlsplit(f"//{named[0]}").hostname in self.hosts
        except ValueError:  # a bracket that does not close
            return False

    def allows(self, path: str) -> bool:
        """
        Tells whether a request may reach the application.

        Args:
            path (`str`):
                Path of the request.

        Returns:
            `bool`
        """
        path = unquote(path)
        if path.startswith(_FILE):
            target = os.path.realpath(path.removeprefix(_FILE))
            return os.path.commonpath([self.cache, target]) == self.cache
        if "file=" in path or "/file/" in path:
            return False
        return path.startswith(_NEEDED) if path.startswith(_API) else not path.startswith(_REFUSED)
