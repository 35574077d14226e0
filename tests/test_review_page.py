"""The review page in a headless browser: decide, reload, kill, resume."""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from chromium import needs_chromium, opened
from pair_sets import dataset, lines_of, make, picture, save
from q_hawkeye_trl.pairs.decisions import read_decisions

pytest.importorskip("gradio", reason="the extra `review` is not installed")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = needs_chromium

HOSTILE = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>.png"


class Server:
    """`q-hawkeye review` in a process of its own."""

    def __init__(self, folder: Path, port: int = 0):
        self.folder = folder
        command = [sys.executable, "-m", "q_hawkeye_trl", "review", str(folder), "--port", str(port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        watchdog, printed, found = threading.Timer(60, self.process.kill), "", None
        watchdog.start()
        while not found and (line := self.process.stdout.readline()):
            printed += line
            found = re.search(r" at (http://\S+:(\d+)/)", line)
        watchdog.cancel()
        assert found, f"the server printed {printed!r}"
        self.url, self.port = found[1], int(found[2])

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
    shutil.copytree(folder, tmp_path / "pairs")
    running = Server(tmp_path / "pairs")
    yield running
    running.end(signal.SIGKILL)


@pytest.fixture
def seen(server, tmp_path):
    with opened(server.url, tmp_path / "profile", width=1440, height=900) as seen:
        seen.page.set_default_timeout(20_000)
        seen.page.wait_for_selector("#info dl")
        yield seen


@pytest.fixture
def page(seen):
    return seen.page


def wait_for_count(page, text):
    page.wait_for_function("text => document.querySelector('#progress b')?.innerText === text", arg=text)


def shown(page):
    return page.locator("#info dl").inner_text()


def decided(server):
    return list(read_decisions(server.folder / "decisions.jsonl").values())


@pytest.mark.slow
def test_decide_reload_kill_resume(server, seen, page):
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
        page.goto(again.url)
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

    assert [url for url in seen.requests if not url.startswith((server.url, "data:", "blob:"))] == []
    assert not any("403" in line for line in seen.console)  # the guard passes everything that the page needs


@pytest.mark.slow
def test_keys_slider_filters_and_a_double_click(server, page):
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
    for number in range(1, 9):
        page.click("#accept")
        wait_for_count(page, f"{number} of 8 decided")
    assert "No pair is left" in page.locator("#info").inner_text()
    page.click("#accept")
    page.wait_for_timeout(500)
    assert len(decided(server)) == 8


def test_nothing_but_the_page_is_served_and_only_on_this_machine(server):
    def status(path, method="GET", **options) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        connection.request(method, path, **options)
        reply = connection.getresponse()
        reply.read()
        return reply.status

    assert status("/") == 200
    files = ("pairs.parquet", "../data/state.json", "/etc/passwd", f"{os.getcwd()}/setup.cfg")
    for path in (*(server.folder / name for name in files), "http://127.0.0.1:1/a"):
        assert status(f"/gradio_api/file={path}") == 403
    assert status("/gradio_api/upload", "POST", body=b"x") == 403
    assert status("/", headers={"Host": f"evil.example:{server.port}"}) == 403
    for origin, kind, expected in (
        ("http://evil.example", "application/json", 403),
        ("http://evil.example", "text/plain", 403),
        (server.url.rstrip("/"), "text/plain", 422),  # what a form can send is not read as a click
        (server.url.rstrip("/"), "application/json", 200),
    ):
        headers = {"Origin": origin, "Content-Type": kind}
        body = json.dumps({"fn_index": 1, "session_hash": "x", "data": ["", *["any"] * 6]})
        assert status("/gradio_api/queue/join", "POST", body=body, headers=headers) == expected
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
