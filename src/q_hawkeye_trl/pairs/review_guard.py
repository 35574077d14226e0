"""What stands between the network and Gradio's many routes: only those that the page needs."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote

_FILE = "/gradio_api/file="
_REFUSED = ("/gradio_api/upload", "/gradio_api/proxy=", "/gradio_api/deep_link", "/monitoring", "/proxy=", "/upload")
_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; frame-ancestors 'none'"
)


class OnlyThePage:
    """
    ASGI middleware: refuses uploads, proxying and every file outside the page's own copies of pictures, and tells the
    browser to load nothing from elsewhere.

    Args:
        app (`Callable`):
            The application.
        cache (`Path`):
            Folder of those copies.
    """

    def __init__(self, app: Any, cache: Path):
        self.app = app
        self.cache = os.path.realpath(cache)

    @classmethod
    def entry(cls, cache: Path) -> Any:
        """The middleware as Gradio's `app_kwargs` take it."""
        from starlette.middleware import Middleware

        return Middleware(cls, cache=cache)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if not self.allows(scope["path"]):
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"Only the page's own pictures are served.\n"})
            return

        async def send_with_policy(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _POLICY.encode())
                message = {**message, "headers": [*message.get("headers", []), policy]}
            await send(message)

        await self.app(scope, receive, send_with_policy)

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
        if path.startswith(_REFUSED):
            return False
        if "file=" in path or "/file/" in path:
            if not path.startswith(_FILE):
                return False
            target = os.path.realpath(path.removeprefix(_FILE))
            return os.path.commonpath([self.cache, target]) == self.cache
        return True
