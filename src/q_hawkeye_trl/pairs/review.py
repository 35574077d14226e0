"""The review page: a local Gradio app on which people accept or reject pairs."""

import html
import json
import os
import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from .decisions import DECISIONS_FILE
from .review_data import MAX_SIDE, ORDERS, STATES, Filters, ReviewData
from .review_guard import OnlyThePage

_FILTERS = ("state", "kind", "severity", "verdict", "dataset", "order")
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
    Serves the page until it is interrupted.

    Args:
        folder (`str` or `os.PathLike`):
            Folder of pairs.
        decisions (`str` or `os.PathLike`, *optional*):
            File of decisions, `decisions.jsonl` in the folder by default. The page's copies of pictures lie beside it
            while it is open.
        host (`str`, *optional*, defaults to `"127.0.0.1"`):
            Address to listen at.
        port (`int`, *optional*, defaults to `7860`):
            Port; 0 takes a free one.
        follow_links (`bool`, *optional*, defaults to `False`):
            Whether originals behind symbolic links that leave their folder are shown.
        open_browser (`bool`, *optional*, defaults to `False`):
            Whether to open the page in a browser.

    Raises:
        `ImportError`: Gradio is missing; the message says how to install it.
        `FileNotFoundError` or `ValueError`: No folder of pairs, or no pair in it.
        `OSError`: The port is taken.
    """
    path = Path(decisions) if decisions is not None else Path(folder) / DECISIONS_FILE
    gradio = _import_gradio()
    data = ReviewData(folder, path, follow_links=follow_links)
    path.parent.mkdir(parents=True, exist_ok=True)
    port = _usable_port(host, port)
    cache = _make_cache(path.parent)
    try:
        os.environ["GRADIO_TEMP_DIR"] = str(cache)
        page = build_page(gradio, data, cache)
        if host not in _LOOPBACK:
            print(f"Everybody who can reach {host}:{port} can see these pictures and decide about them.")
        shown = f"[{host}]" if ":" in host else host  # as addresses of the web spell IPv6
        page.launch(
            server_name=shown,
            server_port=port,
            share=False,
            quiet=True,
            inbrowser=open_browser,
            prevent_thread_lock=True,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            enable_monitoring=False,
            footer_links=[],
            theme=_theme(gradio),
            css=(_ASSETS / "review.css").read_text(encoding="utf-8"),
            head=f"<script>{(_ASSETS / 'review.js').read_text(encoding='utf-8')}</script>",
            app_kwargs={"middleware": [OnlyThePage.entry(cache, _LOOPBACK if host in _LOOPBACK else None)]},
        )
        print(f"Review {folder} at http://{shown}:{port}/  (Ctrl-C ends; decisions are in {path})", flush=True)
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print(f"Ended; decisions are in {path}")
        page.close(verbose=False)  # requests under way would hold up the process's end
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def build_page(gradio: ModuleType, data: ReviewData, cache: Path) -> Any:
    """
    Builds the page.

    Args:
        gradio (`ModuleType`):
            The library.
        data ([`ReviewData`]):
            The pairs.
        cache (`Path`):
            Folder of the page's own copies of pictures.

    Returns:
        `gradio.Blocks`
    """
    with gradio.Blocks(title="Review pairs", analytics_enabled=False, fill_width=True) as page:
        progress = gradio.HTML(elem_id="progress")
        filters = _filter_row(gradio, data)
        with gradio.Row(equal_height=False):
            with gradio.Column(scale=4, min_width=480), gradio.Tabs():
                with gradio.Tab("Side by side"), gradio.Row():
                    options = {"format": "png", "interactive": False, "buttons": ["fullscreen"], "height": "56vh"}
                    original = gradio.Image(label="original", elem_id="original", **options)
                    view = gradio.Image(label="degraded", elem_id="degraded", **options)
                with gradio.Tab("Slider"):
                    slider = gradio.ImageSlider(
                        label="original | degraded",
                        elem_id="slider",
                        format="png",
                        interactive=False,
                        buttons=["fullscreen"],
                        max_height=540,
                    )
            with gradio.Column(scale=1, min_width=260):
                info = gradio.HTML(elem_id="info")
        with gradio.Row(elem_id="buttons"):
            buttons = {
                "previous": gradio.Button("Back", elem_id="previous"),
                "reject": gradio.Button("Reject", elem_id="reject", variant="stop"),
                "accept": gradio.Button("Accept", elem_id="accept", variant="primary"),
                "next": gradio.Button("Skip", elem_id="next"),
                "undo": gradio.Button("Undo", elem_id="undo"),
            }
        keyboard = gradio.Checkbox(
            label="Keys: A accept, R reject, U undo, arrows", value=False, container=False, elem_id="keyboard"
        )
        keyboard.change(None, keyboard, None, js="(on) => { window.reviewKeys = on; }")
        # The browser sends the pair that it shows along with each click, so that a second click that was meant for
        # this pair never decides about the next one.
        shown = gradio.Textbox(visible="hidden", elem_id="shown")
        outputs = [shown, progress, info, original, view, slider]
        handlers = _Handlers(gradio, data, cache)
        inputs, options = [shown, *filters], {"api_visibility": "private", "show_progress": "hidden"}
        page.load(handlers.first, inputs, outputs, **options)
        for name, button in buttons.items():
            button.click(getattr(handlers, name), inputs, outputs, **options)
        for choice in filters:
            # a filter that is set while another one is still at work counts; a second click on a button does not
            choice.input(handlers.first, inputs, outputs, trigger_mode="always_last", **options)
    return page


class _Handlers:
    """What happens on each click; the first argument is the pair that the browser shows."""

    def __init__(self, gradio: ModuleType, data: ReviewData, cache: Path):
        self.gradio = gradio
        self.data = data
        self.cache = cache

    def first(self, shown: str, *filters: str) -> list:
        """Shows the first pair of the filters, or stays at the one that is shown when they let it through."""
        wanted = self.data.matching(Filters(**dict(zip(_FILTERS, filters, strict=True))))
        return self._show(shown if shown in wanted else (wanted[0] if wanted else ""), filters)

    def accept(self, shown: str, *filters: str) -> list:
        """Writes down that a person accepts the pair and shows the next."""
        return self._decide(shown, "accept", filters)

    def reject(self, shown: str, *filters: str) -> list:
        """Writes down that a person rejects the pair and shows the next."""
        return self._decide(shown, "reject", filters)

    def next(self, shown: str, *filters: str) -> list:
        """Shows the next pair without a decision."""
        return self._move(shown, 1, filters)

    def previous(self, shown: str, *filters: str) -> list:
        """Shows the pair before."""
        return self._move(shown, -1, filters)

    def undo(self, shown: str, *filters: str) -> list:
        """Takes the last decision back and shows its pair again."""
        name = self.data.undo()
        if not name:
            self.gradio.Info("There is no decision to take back.")
        return self._show(name or shown, filters)

    def _decide(self, shown: str, decision: str, filters: tuple[str, ...]) -> list:
        if shown not in self.data.by_id:
            return self._show("", filters)
        problem = self.data.pictures(shown).problem
        if problem is not None:
            self.gradio.Warning("Nothing is written down about a pair that can't be seen.")
            return self._show(shown, filters)
        try:
            self.data.decide(shown, decision)
        except OSError as error:
            raise self.gradio.Error(f"The decision could not be written: {error}", print_exception=False) from error
        return self._move(shown, 1, filters)

    def _move(self, shown: str, step: int, filters: tuple[str, ...]) -> list:
        chosen = Filters(**dict(zip(_FILTERS, filters, strict=True)))
        name = self.data.next_id(shown, chosen, step)
        return self._show(name or (shown if shown in self.data.matching(chosen) else ""), filters)

    def _show(self, name: str, filters: tuple[str, ...]) -> list:
        left = len(self.data.matching(Filters(**dict(zip(_FILTERS, filters, strict=True)))))
        progress = _progress_html(self.data.counts(), left)
        if name not in self.data.by_id:
            done = "<div class='notice'>No pair is left with these filters.</div>"
            return ["", progress, done, None, None, None]
        pair, pictures = self.data.by_id[name], self.data.pictures(name)
        info = _info_html(pair, self.data.state(name), pictures.problem)
        if pictures.original is None or pictures.view is None:
            return [name, progress, info, None, None, None]
        original = self._copy(pictures.original, pair["pixel_hash"])
        view = self._copy(pictures.view, pair["degraded_pixel_hash"])
        return [name, progress, info, original, view, (original, view)]

    def _copy(self, image: Image.Image, digest: str) -> str:
        # A quick PNG once, which both tabs show: Gradio would compress each picture twice, and slowly.
        path = self.cache / f"{digest}.png"
        if not path.exists():
            partial = self.cache / f"{digest}.{threading.get_ident()}.partial"
            image.save(partial, "PNG", compress_level=1)
            partial.replace(path)
        old = sorted(self.cache.glob("*.png"), key=lambda file: file.stat().st_mtime)[:-_COPIES]
        for file in old:
            file.unlink(missing_ok=True)
        return str(path)


def _filter_row(gradio: ModuleType, data: ReviewData) -> list:
    with gradio.Row(elem_id="filters"):
        state = gradio.Dropdown(list(STATES), value="undecided", label="show", min_width=120, elem_id="state")
        rest = [
            gradio.Dropdown(
                choices := data.choices(name),
                value=choices[0],
                label=name,
                min_width=120,
                visible=len(choices) > 2 or name != "dataset",
                elem_id=name,
            )
            for name in _FILTERS[1:-1]
        ]
        order = gradio.Dropdown(list(ORDERS), value=ORDERS[0], label="order", min_width=120, elem_id="order")
    return [state, *rest, order]


def _progress_html(counts: dict[str, int], left: int) -> str:
    decided = counts["accepted"] + counts["rejected"]
    shares = {name: 100 * counts[name] / counts["all"] for name in ("accepted", "rejected")}
    bars = "".join(f"<span class='{name}' style='width:{share:.2f}%'></span>" for name, share in shares.items())
    return (
        f"<div class='counts'><b>{decided:,} of {counts['all']:,} decided</b> · {counts['accepted']:,} accepted · "
        f"{counts['rejected']:,} rejected · {left:,} with these filters</div><div class='bar'>{bars}</div>"
    )


def _info_html(pair: dict[str, Any], decision: str | None, problem: str | None) -> str:
    rows = [
        ("degradation", pair["operation"]),
        ("SSIM", _number(pair["ssim"], 3)),
        ("PSNR", _number(pair["psnr"], 1, " dB")),
    ]
    rows += [("verdict", pair["verdict"].replace("_", " "))]
    if pair["first_operation"]:
        first = (
            f"{pair['first_operation']} was too mild ({pair['first_reason']}): SSIM {_number(pair['first_ssim'], 3)}"
        )
        rows += [("strengthened", f"{first}, PSNR {_number(pair['first_psnr'], 1, ' dB')}")]
    if pair["judge_answer"]:
        rows += [(f"judge {pair['judge']}", pair["judge_answer"])]
    size = f"{pair['width']} x {pair['height']}"
    if max(pair["width"], pair["height"]) > MAX_SIDE:
        size += f", shown with a long side of {MAX_SIDE}"
    where = " / ".join(part for part in (pair["dataset"], pair["split"], f"row {pair['row']}") if part)
    rows += [("image", pair["image_id"]), ("size", size), ("from", where)]
    for step in json.loads(pair["parameters"]):
        values = ", ".join(f"{name} {value:.4g}" for name, value in step["parameters"].items())
        rows += [(step["kind"], values)]
    cells = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>" for name, value in rows)
    badge = {None: "", "accept": "<div class='badge accepted'>accepted</div>"}
    badge["reject"] = "<div class='badge rejected'>rejected</div>"
    notice = f"<div class='notice'>{html.escape(problem)}</div>" if problem else ""
    return f"{badge[decision]}{notice}<dl>{cells}</dl>"


def _number(value: float | None, digits: int, unit: str = "") -> str:
    return "too small for its window" if value is None else f"{value:.{digits}f}{unit}"


def _import_gradio() -> ModuleType:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read on import
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    # Gradio looks at its own page when it starts, which a proxy could not reach.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"]))
    try:
        import gradio
    except ImportError as error:
        raise ImportError(
            "The review page needs Gradio, which is not installed: pip install 'q-hawkeye-trl[review]'."
        ) from error
    return gradio


def _theme(gradio: ModuleType) -> Any:
    # Fonts of the system: the themes' own would be fetched from the network.
    return gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def _usable_port(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise OSError(
                f"{host}:{port} can't be listened at ({error.strerror}): name another --port, or 0."
            ) from error
        return probe.getsockname()[1]


def _make_cache(folder: Path) -> Path:
    """A folder of this process for the page's copies of pictures; those of killed pages are removed."""
    for old in folder.glob(".review-*-*"):
        owner = old.name.split("-")[1]
        if owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f".review-{os.getpid()}-", dir=folder))
