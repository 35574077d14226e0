"""The review page in a headless browser: decide, reload, kill, resume."""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pair_sets import dataset, lines_of, make, picture, save
from q_hawkeye_trl.pairs.decisions import read_decisions

pytest.importorskip("gradio", reason="the extra `review` is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine", allow_module_level=True)

OPTIONS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
OPTIONS += " --disable-component-update --disable-sync"
HOSTILE = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>.png"


class Server:
    """`q-hawkeye review` in a process of its own."""

    def __init__(self, folder: Path, port: int = 0):
        command = [sys.executable, "-m", "q_hawkeye_trl", "review", str(folder), "--port", str(port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        watchdog = threading.Timer(60, self.process.kill)
        watchdog.start()
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line)
            if " at http://" in line:
                break
        watchdog.cancel()
        assert self.lines, "the server printed nothing"
        assert " at http://" in self.lines[-1], "".join(self.lines)
        self.url = self.lines[-1].split(" at ")[1].split()[0]
        self.port = int(self.url.rsplit(":", 1)[1].strip("/"))

    def end(self, number: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(120)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("review")
    images = [picture(n, (112, 84)) for n in range(8)]
    names = [HOSTILE if n == 0 else f"{n}.png" for n in range(8)]
    save(root / "data", dataset(images, image_id=names))
    degradations = ["jpeg@4", "gaussian_noise@2", "darken@3"]
    make(root / "data", root / "pairs", degradations=degradations, mild_ssim=0.8, mild_psnr=20)
    return root / "pairs"


@pytest.fixture
def server(folder, tmp_path):
    mine = tmp_path / "pairs"
    shutil.copytree(folder, mine)
    running = Server(mine)
    running.folder = mine
    yield running
    running.end(signal.SIGKILL)


@pytest.fixture
def page(tmp_path):
    with playwright.sync_playwright() as engine:
        context = engine.chromium.launch_persistent_context(
            str(tmp_path / "profile"),
            executable_path=CHROMIUM,
            args=OPTIONS.split(),
            viewport={"width": 1440, "height": 900},
        )
        opened = context.new_page()
        opened.set_default_timeout(20_000)
        opened.asked = []
        opened.refused = []
        opened.on("request", lambda request: opened.asked.append(request.url))
        opened.on("response", lambda reply: opened.refused.append(reply.url) if reply.status == 403 else None)
        yield opened
        context.close()


def visit(page, server):
    page.goto(server.url)
    page.wait_for_selector("#info dl")


def wait_for_count(page, text):
    page.wait_for_function("text => document.querySelector('#progress b')?.innerText === text", arg=text)


def shown(page):
    return page.locator("#info dl").inner_text()


def decided(server):
    return list(read_decisions(server.folder / "decisions.jsonl").values())


def test_decide_reload_kill_resume(server, page):
    visit(page, server)
    wait_for_count(page, "0 of 8 decided")
    page.wait_for_function("document.querySelector('#original img')?.naturalWidth === 112")
    page.wait_for_function("document.querySelector('#degraded img')?.naturalWidth === 112")
    text = shown(page)
    assert all(word in text for word in ("degradation", "SSIM", "PSNR", "verdict", "ok", "112 x 84", "row "))

    page.click("#accept")
    wait_for_count(page, "1 of 8 decided")
    assert decided(server) == ["accept"]  # on disk before the next pair appears
    assert shown(page) != text
    page.click("#reject")
    wait_for_count(page, "2 of 8 decided")
    assert decided(server) == ["accept", "reject"]

    before = shown(page)
    page.reload()
    wait_for_count(page, "2 of 8 decided")
    page.wait_for_selector("#info dl")
    assert shown(page) == before

    server.end(signal.SIGKILL)
    again = Server(server.folder, server.port)
    try:
        visit(page, again)
        wait_for_count(page, "2 of 8 decided")
        assert shown(page) == before
        page.click("#undo")
        wait_for_count(page, "1 of 8 decided")
        assert decided(server) == ["accept"]
        page.click("#reject")
        wait_for_count(page, "2 of 8 decided")
        assert shown(page) == before
    finally:
        again.end(signal.SIGINT)
    assert decided(server) == ["accept", "reject"]
    lines = [json.loads(line) for line in (server.folder / "decisions.jsonl").read_text().splitlines()]
    assert [line["decision"] for line in lines] == ["accept", "reject", "undo", "reject"]
    assert not list(server.folder.glob(".review-*"))  # copies of both servers are gone

    outside = [url for url in page.asked if not url.startswith((server.url, "data:", "blob:"))]
    assert outside == []
    assert page.refused == []  # the guard passes everything that the page needs


@pytest.mark.slow
def test_keys_slider_filters_and_a_double_click(server, page):
    visit(page, server)
    page.keyboard.press("a")  # keys only work when their box is ticked
    page.check("#keyboard input")
    page.keyboard.press("a")
    wait_for_count(page, "1 of 8 decided")
    page.keyboard.press("r")
    wait_for_count(page, "2 of 8 decided")
    page.keyboard.press("u")
    wait_for_count(page, "1 of 8 decided")
    assert decided(server) == ["accept"]

    page.get_by_role("tab", name="Slider").click()
    page.wait_for_function(
        "[...document.querySelectorAll('#slider img')].filter(i => i.naturalWidth === 112).length >= 2"
    )
    handle = page.locator("#slider .handle, #slider .inner, #slider [role=slider]").first
    assert handle.is_visible()

    # a double click decides about one pair, never about the next one unseen
    page.evaluate("() => { const b = document.querySelector('#reject'); b.click(); b.click(); }")
    wait_for_count(page, "2 of 8 decided")
    page.wait_for_timeout(700)
    assert decided(server) == ["accept", "reject"]

    choose(page, "state", "accepted")
    page.wait_for_function("document.querySelector('#progress').innerText.includes('1 with these filters')")
    page.wait_for_selector("#info .badge.accepted")
    choose(page, "state", "all")
    choose(page, "order", "in order")
    choose(page, "kind", "darken")  # while the earlier filters are still at work
    darkened = sum("darken" in line["operation"] for line in lines_of(server.folder))
    expected = f"{darkened} with these filters"
    page.wait_for_function("text => document.querySelector('#progress').innerText.includes(text)", arg=expected)
    page.wait_for_function("document.querySelector('#info dl')?.innerText.includes('darken')")
    choose(page, "verdict", "ok")
    choose(page, "state", "undecided")
    page.wait_for_function("!document.querySelector('#info .badge')")


def choose(page, name, value):
    page.click(f"#{name} input")
    page.get_by_role("option", name=value, exact=True).click()


@pytest.mark.slow
def test_names_with_markup_are_shown_and_never_run(server, page):
    visit(page, server)
    choose(page, "state", "all")
    choose(page, "order", "in order")
    for _ in range(8):
        if HOSTILE in shown(page):
            break
        before = shown(page)
        page.click("#next")
        page.wait_for_function("text => document.querySelector('#info dl').innerText !== text", arg=before)
    assert HOSTILE in shown(page)
    page.wait_for_timeout(300)
    assert page.evaluate("window.hacked") is None


@pytest.mark.slow
def test_the_end_is_reported(server, page):
    visit(page, server)
    for number in range(1, 9):
        page.click("#accept")
        wait_for_count(page, f"{number} of 8 decided")
    assert "No pair is left" in page.locator("#info").inner_text()
    page.click("#accept")
    page.wait_for_timeout(500)
    assert len(decided(server)) == 8


def test_nothing_but_the_page_is_served_and_only_on_this_machine(server):
    def status(path, method="GET", **options):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        connection.request(method, path, **options)
        reply = connection.getresponse()
        reply.read()
        return reply.status

    assert status("/") == 200
    paths = [
        "/etc/passwd",
        f"{server.folder}/pairs.parquet",
        f"{server.folder}/../data/state.json",
        os.getcwd() + "/setup.cfg",
    ]
    for path in paths:
        assert status(f"/gradio_api/file={path}") == 403
    assert status("/gradio_api/file=http://127.0.0.1:1/a") == 403
    assert status("/gradio_api/upload", "POST", body=b"x") == 403
    assert status("/", headers={"Host": f"evil.example:{server.port}"}) == 403
    # what a foreign site can send without asking first is not read as a click
    foreign = {"Origin": "http://evil.example", "Content-Type": "text/plain"}
    assert status("/gradio_api/queue/join", "POST", body=b'{"fn_index": 4, "data": []}', headers=foreign) == 422
    listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    port = f":{server.port:04X}"
    own = [line.split()[1] for line in listening.splitlines()[1:] if line.split()[1].endswith(port)]
    assert {address.split(":")[0] for address in own} == {"0100007F"}  # 127.0.0.1


@pytest.mark.slow
def test_a_port_in_use_is_reported(server):
    command = [sys.executable, "-m", "q_hawkeye_trl", "review", str(server.folder), "--port", str(server.port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"127.0.0.1:{server.port}" in done.stderr
    assert "--port" in done.stderr
