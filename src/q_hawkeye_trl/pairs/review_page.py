"""The review page: a local Gradio app on which people accept or reject pairs."""

import html
import json
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import fields
from functools import partialmethod
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

from PIL import Image

from .decisions import DECISIONS_FILE, MAX_SIDE, ORDERS, STATES, Filters, ReviewData

_FILTERS = tuple(field.name for field in fields(Filters))
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_ASSETS = Path(__file__).parent
_COPIES = 200


def serve_review(
    folder: str | os.PathLike,
    decisions: str | os.PathLike | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    follow_links: bool = False,
    open_browser: bool = False,
) -> None:
    """
    Serve the page until Ctrl-C.

    Args:
        folder (`str` or `os.PathLike`):
            Folder of pairs.
        decisions (`str` or `os.PathLike`, *optional*):
            File of decisions. By default `decisions.jsonl` in the folder. The page keeps temporary copies of pictures
            beside it.
        host (`str`, *optional*, defaults to `"127.0.0.1"`):
            Address to listen on.
        port (`int`, *optional*, defaults to `7860`):
            Port to listen on; 0 picks a free one.
        follow_links (`bool`, *optional*, defaults to `False`):
            Whether to show originals behind symbolic links that leave their folder.
        open_browser (`bool`, *optional*, defaults to `False`):
            Whether to open the page in a browser.

    Raises:
        `ImportError`: Gradio is not installed.
        `FileNotFoundError` or `ValueError`: The folder holds no pairs to review.
        `OSError`: The port is in use.
    """
    path = Path(decisions) if decisions is not None else Path(folder) / DECISIONS_FILE
    gradio = _import_gradio()
    from starlette.middleware import Middleware  # installed with Gradio

    data = ReviewData(folder, path, follow_links=follow_links)
    path.parent.mkdir(parents=True, exist_ok=True)
    port = _usable_port(host, port)
    cache = _make_cache(path.parent)
    names = _LOOPBACK if host in _LOOPBACK else None
    if names is None:
        print(f"Anyone who can reach {host}:{port} can see these pictures and decide about them.")
    shown = f"[{host}]" if ":" in host else host  # IPv6 in URLs
    try:
        os.environ["GRADIO_TEMP_DIR"] = str(cache)  # read by the components of the page
        page = build_page(gradio, data, cache)
        page.launch(
            server_name=shown,
            server_port=port,
            quiet=True,
            inbrowser=open_browser,
            prevent_thread_lock=True,
            footer_links=[],
            # the system's fonts: the themes' own would be loaded from the network
            theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=(_ASSETS / "review.css").read_text(encoding="utf-8"),
            head=f"<script>{(_ASSETS / 'review.js').read_text(encoding='utf-8')}</script>",
            app_kwargs={"middleware": [Middleware(PageGuard, cache=cache, hosts=names)]},
            **dict.fromkeys(("share", "ssr_mode", "mcp_server", "pwa", "enable_monitoring"), False),
        )
        print(f"Review {folder} at http://{shown}:{port}/  (stop with Ctrl-C; decisions are in {path})", flush=True)
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print(f"Stopped; decisions are in {path}")
        page.close(verbose=False)  # open requests would delay the exit
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def build_page(gradio: ModuleType, data: ReviewData, cache: Path) -> Any:
    """Build the page, a `gradio.Blocks`; its copies of pictures go to `cache`."""
    with gradio.Blocks(title="Review pairs", analytics_enabled=False, fill_width=True) as page:
        progress = gradio.HTML(elem_id="progress")
        filters = _filter_row(gradio, data)
        options = {"format": "png", "interactive": False, "buttons": ["fullscreen"]}
        with gradio.Row(equal_height=False):
            with gradio.Column(scale=4, min_width=480), gradio.Tabs():
                with gradio.Tab("Side by side"), gradio.Row():
                    original = gradio.Image(label="original", elem_id="original", height="56vh", **options)
                    view = gradio.Image(label="degraded", elem_id="degraded", height="56vh", **options)
                with gradio.Tab("Slider"):
                    slider = gradio.ImageSlider(
                        label="original | degraded", elem_id="slider", max_height=540, **options
                    )
            with gradio.Column(scale=1, min_width=260):
                info = gradio.HTML(elem_id="info")
        with gradio.Row(elem_id="buttons"):
            labels = {"previous": "Back", "reject": "Reject", "accept": "Accept", "next": "Skip", "undo": "Undo"}
            variants = {"reject": "stop", "accept": "primary"}
            buttons = {
                name: gradio.Button(label, elem_id=name, variant=variants.get(name, "secondary"))
                for name, label in labels.items()
            }
        keyboard = gradio.Checkbox(
            label="Keys: A accept, R reject, U undo, arrows", value=False, container=False, elem_id="keyboard"
        )
        keyboard.change(None, keyboard, None, js="(on) => { window.reviewKeys = on; }")
        # The browser sends the id of the pair that it shows with each click, so that the second click of a double
        # click never decides about the next pair.
        shown = gradio.Textbox(visible="hidden", elem_id="shown")
        inputs, outputs = [shown, *filters], [shown, progress, info, original, view, slider]
        handlers, options = _Handlers(gradio, data, cache), {"api_visibility": "private", "show_progress": "hidden"}
        page.load(handlers.first, inputs, outputs, **options)
        for name, button in buttons.items():
            button.click(getattr(handlers, name), inputs, outputs, **options)
        for choice in filters:
            # a filter changed during another change is applied afterwards; a second click on a button is ignored
            choice.input(handlers.first, inputs, outputs, trigger_mode="always_last", **options)
    return page


def _filter_row(gradio: ModuleType, data: ReviewData) -> list:
    with gradio.Row(elem_id="filters"):
        dropdowns = []
        for name in _FILTERS:
            choices = {"state": list(STATES), "order": list(ORDERS)}.get(name) or data.choices(name)
            is_useful = len(choices) > 2 or name != "dataset"
            options = {"value": choices[0], "label": "show" if name == "state" else name, "visible": is_useful}
            dropdowns.append(gradio.Dropdown(choices, min_width=120, elem_id=name, **options))
    return dropdowns


class _Handlers:
    """Actions of the page: each takes the shown pair and the filters, and returns the new content."""

    def __init__(self, gradio: ModuleType, data: ReviewData, cache: Path):
        self.gradio = gradio
        self.data = data
        self.cache = cache

    def first(self, shown: str, *filters: str) -> list:
        wanted = self.data.matching(Filters(*filters))
        return self._show(shown if shown in wanted else (wanted[0] if wanted else ""), filters)

    def undo(self, shown: str, *filters: str) -> list:
        name = self.data.undo()
        if not name:
            self.gradio.Info("There is no decision to undo.")
        return self._show(name or shown, filters)

    def _decide(self, decision: str, shown: str, *filters: str) -> list:
        if shown not in self.data.pairs:
            return self._show("", filters)
        if self.data.pictures(shown).problem is not None:
            self.gradio.Warning("Not recorded: this pair can't be shown.")
            return self._show(shown, filters)
        try:
            self.data.decide(shown, decision)
        except OSError as error:
            raise self.gradio.Error(f"The decision could not be recorded: {error}", print_exception=False) from error
        return self._move(1, shown, *filters)

    def _move(self, step: int, shown: str, *filters: str) -> list:
        chosen = Filters(*filters)
        name = self.data.next_id(shown, chosen, step)
        return self._show(name or (shown if shown in self.data.matching(chosen) else ""), filters)

    accept = partialmethod(_decide, "accept")
    reject = partialmethod(_decide, "reject")
    next = partialmethod(_move, 1)
    previous = partialmethod(_move, -1)

    def _show(self, name: str, filters: tuple[str, ...]) -> list:
        progress = _progress_html(self.data.counts(), len(self.data.matching(Filters(*filters))))
        if name not in self.data.pairs:
            return ["", progress, "<div class='notice'>No pair is left with these filters.</div>", None, None, None]
        pair, pictures = self.data.pairs[name], self.data.pictures(name)
        info = _info_html(pair, self.data.state(name), pictures.problem)
        if pictures.original is None or pictures.view is None:
            return [name, progress, info, None, None, None]
        original = self._copy(pictures.original, pair["pixel_hash"])
        view = self._copy(pictures.view, pair["degraded_pixel_hash"])
        return [name, progress, info, original, view, (original, view)]

    def _copy(self, image: Image.Image, digest: str) -> str:
        # One fast PNG that both tabs show: Gradio would compress each picture twice, and slowly.
        path = self.cache / f"{digest}.png"
        if not path.exists():
            partial = self.cache / f"{digest}.{threading.get_ident()}.partial"
            image.save(partial, "PNG", compress_level=1)
            partial.replace(path)
        for old in sorted(self.cache.glob("*.png"), key=lambda file: file.stat().st_mtime)[:-_COPIES]:
            old.unlink(missing_ok=True)
        return str(path)


def _progress_html(counts: dict[str, int], left: int) -> str:
    decided = counts["accepted"] + counts["rejected"]
    shares = {name: 100 * counts[name] / counts["all"] for name in ("accepted", "rejected")}
    bars = "".join(f"<span class='{name}' style='width:{share:.2f}%'></span>" for name, share in shares.items())
    return (
        f"<div class='counts'><b>{decided:,} of {counts['all']:,} decided</b> · {counts['accepted']:,} accepted · "
        f"{counts['rejected']:,} rejected · {left:,} with these filters</div><div class='bar'>{bars}</div>"
    )


def _info_html(pair: dict[str, Any], state: str, problem: str | None) -> str:
    rows = [("degradation", pair["operation"]), *_distance_rows(pair["ssim"], pair["psnr"])]
    rows += [("verdict", pair["verdict"].replace("_", " "))]
    if pair["first_operation"]:
        distance = ", ".join(f"{k} {v}" for k, v in _distance_rows(pair["first_ssim"], pair["first_psnr"]))
        rows += [("strengthened", f"{pair['first_operation']} was too mild ({pair['first_reason']}): {distance}")]
    if pair["judge_answer"]:
        rows += [(f"judge {pair['judge']}", pair["judge_answer"])]
    size = f"{pair['width']} x {pair['height']}"
    if max(pair["width"], pair["height"]) > MAX_SIDE:
        size += f", shown with a long side of {MAX_SIDE}"
    where = " / ".join(part for part in (pair["dataset"], pair["split"], f"row {pair['row']}") if part)
    rows += [("image", pair["image_id"]), ("size", size), ("from", where)]
    for step in json.loads(pair["parameters"]):
        rows += [(step["kind"], ", ".join(f"{name} {value:.4g}" for name, value in step["parameters"].items()))]
    cells = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>" for name, value in rows)
    badge = "" if state == "undecided" else f"<div class='badge {state}'>{state}</div>"
    notice = f"<div class='notice'>{html.escape(problem)}</div>" if problem else ""
    return f"{badge}{notice}<dl>{cells}</dl>"


def _distance_rows(ssim: float | None, psnr: float) -> list[tuple[str, str]]:
    return [("SSIM", "image too small" if ssim is None else f"{ssim:.3f}"), ("PSNR", f"{psnr:.1f} dB")]


def _import_gradio() -> ModuleType:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read on import
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    # Gradio requests its own page when it starts, which a proxy could not reach.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"]))
    try:
        import gradio
    except ImportError as error:
        raise ImportError(
            "The review page needs Gradio, which is not installed: pip install 'q-hawkeye-trl[review]'."
        ) from error
    return gradio


def _usable_port(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise OSError(f"Can't listen on {host}:{port} ({error.strerror}): pass another --port, or 0.") from error
        return probe.getsockname()[1]


def _make_cache(folder: Path) -> Path:
    """Create this process's folder for the page's copies of pictures; remove those of killed pages."""
    for old in folder.glob(".review-*-*"):
        owner = old.name.split("-")[1]
        if owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f".review-{os.getpid()}-", dir=folder))


_FILE = "/gradio_api/file="
_API = "/gradio_api"
# The routes of Gradio that the page needs; the others upload, proxy, record, call by name, profile or edit the page.
_NAMES = ("app_id", "cancel", "heartbeat/", "info", "login_check", "queue/", "reset", "startup-events", "theme.css")
_NEEDED = tuple(f"{_API}/{name}" for name in _NAMES)
_REFUSED = ("/login", "/logout", "/monitoring", "/proxy=", "/upload")
_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; frame-ancestors 'none'"
)


class PageGuard:
    """
    ASGI middleware: passes only the routes that the page needs and files of `cache`, and forbids the browser from
    loading anything from elsewhere.

    Requests with the `Origin` of another site are refused. With `hosts`, so are requests by other names: otherwise a
    foreign site whose name resolves to this machine could read a page that listens on the loopback only. Starlette's
    `TrustedHostMiddleware` is no replacement: of two `Host` headers it checks the first.
    """

    def __init__(self, app: Any, cache: Path, hosts: Sequence[str] | None = None):
        self.app = app
        self.cache = os.path.realpath(cache)
        self.hosts = hosts

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if not self.allows(scope["path"]) or not self.is_from_page(scope["headers"]):
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"Only the page and its own pictures are served.\n"})
            return

        async def send_with_policy(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _POLICY.encode())
                message = {**message, "headers": [*message.get("headers", []), policy]}
            await send(message)

        await self.app(scope, receive, send_with_policy)

    def is_from_page(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """Tell whether a request has one of the names as its only `Host`, and no other site as its `Origin`."""
        hosts, origins = (
            [value.decode("latin-1") for name, value in headers if name.lower() == wanted]
            for wanted in (b"host", b"origin")
        )
        try:
            if any(urlsplit(origin).netloc not in hosts for origin in origins):
                return False
            return self.hosts is None or (len(hosts) == 1 and urlsplit(f"//{hosts[0]}").hostname in self.hosts)
        except ValueError:  # an unclosed bracket
            return False

    def allows(self, path: str) -> bool:
        """Tell whether a request for a path may reach the application."""
        path = unquote(path)
        if path.startswith(_FILE):
            target = os.path.realpath(path.removeprefix(_FILE))
            return os.path.commonpath([self.cache, target]) == self.cache
        if "file=" in path or "/file/" in path:
            return False
        return path.startswith(_NEEDED) if path.startswith(_API) else not path.startswith(_REFUSED)
