"""VLM judges: the form of answers, an HTTP endpoint on this machine, a local checkpoint."""

import base64
import io
import json
import os
import re
import subprocess
import sys
import threading
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import pytest
from PIL import Image
from transformers import AutoProcessor

import q_hawkeye_trl.pairs.judge as judge_module
from pair_sets import dataset, lines_of, make, picture, save
from q_hawkeye_trl.data.degradations import pixel_hash
from q_hawkeye_trl.demo.policy import demo_policy_path
from q_hawkeye_trl.io.journal import read_lines
from q_hawkeye_trl.pairs.judge import (
    FAILURES_IN_A_ROW,
    JUDGE_PROMPT,
    JudgeError,
    JudgeSettings,
    Verdict,
    build_judge,
    parse_verdict,
)
from q_hawkeye_trl.pairs.making import PairMaker

DIFFERENT = "<think>blocks</think><answer>different</answer>"
SAME = "<answer>same</answer>"


@pytest.fixture(autouse=True)
def _loopback(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # requests go to this machine only
    monkeypatch.setattr(judge_module.time, "sleep", lambda seconds: None)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    """An OpenAI-compatible endpoint. `answers` gets the pair's pixel hashes and returns text or a status."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            blocks = body["messages"][0]["content"]
            urls = [block["image_url"]["url"] for block in blocks[:2]]
            pictures = [Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) for url in urls]
            with lock:
                endpoint.requests.append((self.path, dict(self.headers), body, pictures))
                answer = endpoint.answers(*map(pixel_hash, pictures))
            if isinstance(answer, int):
                self.send_response(answer)
                payload = b'{"error": "busy"}'
            else:
                self.send_response(200)
                message = {"role": "assistant", "content": answer}
                choice = {"index": 0, "finish_reason": "stop", "message": message}
                usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
                reply = {"id": "1", "created": 1, "model": body["model"], "choices": [choice], "usage": usage}
                payload = json.dumps({**reply, "object": "chat.completion", "system_fingerprint": ""}).encode()
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *arguments):
            pass

    lock = threading.Lock()
    endpoint = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint.requests, endpoint.answers = [], lambda first, second: DIFFERENT
    endpoint.url = f"http://127.0.0.1:{endpoint.server_port}/v1"
    thread = threading.Thread(target=endpoint.serve_forever)
    thread.start()
    yield endpoint
    endpoint.shutdown()
    thread.join()
    endpoint.server_close()


def ask(server, **settings):
    judge = build_judge(JudgeSettings("some/judge", server.url, **settings))
    return judge(picture(0), picture(1))


def authorization(headers):
    return {name.lower(): value for name, value in headers.items()}["authorization"]


@pytest.mark.parametrize(
    ("answer", "different"),
    [
        (DIFFERENT, True),
        (SAME, False),
        ("same", False),
        (" Different.\n", True),
        ("<answer> SAME </answer>", False),
        ("<answer>same</answer> no, wait <answer>different</answer>", True),
        ('**"different"**', True),
        *((answer, None) for answer in ("", "I see no difference", "<answer>3.5</answer>", "same different")),
    ],
)
def test_answers_are_parsed(answer, different):
    with pytest.raises(JudgeError) if different is None else nullcontext():
        assert parse_verdict(answer) == Verdict(different, answer)


def test_an_endpoint_gets_both_pictures_lossless_and_no_token_of_the_user(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    assert ask(server) == Verdict(True, DIFFERENT)
    ((path, headers, body, pictures),) = server.requests
    assert path == "/v1/chat/completions"
    assert [pixel_hash(image) for image in pictures] == [pixel_hash(picture(0)), pixel_hash(picture(1))]
    assert (body["model"], body["temperature"]) == ("some/judge", 0)
    assert body["messages"][0]["content"][2] == {"type": "text", "text": JUDGE_PROMPT}
    assert authorization(headers) == "Bearer EMPTY"
    monkeypatch.setenv("MY_KEY", "secret-1")
    ask(server, key_variable="MY_KEY")
    assert authorization(server.requests[-1][1]) == "Bearer secret-1"


def test_temporary_failures_are_retried_and_permanent_ones_raise(server):
    replies = [503, 429, SAME]
    server.answers = lambda first, second: replies.pop(0)
    assert ask(server) == Verdict(False, SAME)
    for status, requests in ((500, 6), (401, 7)):
        server.answers = lambda first, second, status=status: status
        with pytest.raises(JudgeError, match=str(status)):
            ask(server)
        assert len(server.requests) == requests
    with pytest.raises(JudgeError, match=r"http://127\.0\.0\.1:1/v1"):  # nothing listens there
        build_judge(JudgeSettings("j", "http://127.0.0.1:1/v1"))(picture(0), picture(1))


def test_offline_mode_raises_at_once(server, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE"):
        ask(server)


def test_a_judge_is_not_asked_again_after_failures_in_a_row(server):
    answers = iter([*["?"] * (FAILURES_IN_A_ROW - 1), SAME, *["?"] * FAILURES_IN_A_ROW, SAME])
    server.answers = lambda first, second: next(answers)
    judge, errors = build_judge(JudgeSettings("m", server.url)), []
    for _ in range(2 * FAILURES_IN_A_ROW + 1):
        try:
            assert not judge(picture(0), picture(1)).different
        except JudgeError as error:
            errors.append(str(error))
    assert len(server.requests) == 2 * FAILURES_IN_A_ROW
    assert ["not asked" in error for error in errors] == [False] * (2 * FAILURES_IN_A_ROW - 1) + [True]


@pytest.mark.parametrize(
    ("name", "value"), [("base_url", "127.0.0.1:8000"), ("key_variable", "NO_KEY"), ("timeout", 0)]
)
def test_settings_of_a_judge_are_checked(name, value):
    with pytest.raises(ValueError, match=str(value)):
        JudgeSettings("j", **{name: value})


# --- the judge in a run ---


def run(tmp_path, server, **settings):
    if not (tmp_path / "data").exists():
        save(tmp_path / "data", dataset(8))
    judge = JudgeSettings("some/judge", server.url, concurrency=3)
    settings = {"degradations": ["gaussian_noise@4", "jpeg@5"], "second": ["darken@4"], "judge": judge, **settings}
    return make(tmp_path / "data", tmp_path / "out", **settings)


def test_pairs_that_look_the_same_to_the_judge_are_strengthened_and_judged_again(tmp_path, server):
    originals = [pixel_hash(picture(n)) for n in range(8)]
    seen = []

    def answers(first, second):
        seen.append(first)
        return SAME if first in originals[:3] and seen.count(first) == 1 else DIFFERENT

    server.answers = answers
    summary = run(tmp_path, server)
    lines = lines_of(tmp_path / "out")
    assert [line["stage"] for line in lines] == ["strengthened"] * 3 + ["once"] * 5
    assert [line["first_reason"] for line in lines] == ["judge"] * 3 + [None] * 5
    assert all(line["operation"].endswith("+darken@4") for line in lines[:3])
    assert {(line["judge"], line["judge_answer"]) for line in lines} == {("some/judge", DIFFERENT)}
    assert summary.verdicts == {"ok": 8}
    assert len(server.requests) == 11
    stored = [line.content["different"] for line in read_lines(tmp_path / "out" / "verdicts.jsonl")]
    assert sorted(stored) == [False] * 3 + [True] * 8


def test_pairs_that_are_too_mild_by_distance_are_not_shown_to_the_judge(tmp_path, server):
    assert run(tmp_path, server, mild_ssim=-1, mild_psnr=0).verdicts == {"too_mild": 8}
    assert server.requests == []


def test_a_failing_judge_loses_no_pair_and_the_next_run_asks_only_what_is_missing(tmp_path, server):
    failing = {pixel_hash(picture(n)) for n in (2, 5)}
    server.answers = lambda first, second: 500 if first in failing else DIFFERENT
    summary = run(tmp_path, server)
    lines = lines_of(tmp_path / "out")
    assert [line["verdict"] for line in lines] == ["ok", "ok", "unjudged", "ok", "ok", "unjudged", "ok", "ok"]
    assert all(line["kept"] for line in lines)
    assert "500" in lines[2]["error"]
    assert summary.unfinished == 2
    server.requests.clear()
    server.answers = lambda first, second: DIFFERENT
    assert run(tmp_path, server).verdicts == {"ok": 8}
    assert {pixel_hash(pictures[0]) for *_, pictures in server.requests} == failing
    assert run(tmp_path, server).made == 0
    assert len(server.requests) == 2


def test_verdicts_are_on_disk_as_they_come(tmp_path, server, monkeypatch):
    original = PairMaker.make

    def stopping(self, row):
        if row.row == 5:
            raise InterruptedError
        return original(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(PairMaker, "make", stopping)
        with pytest.raises(InterruptedError):
            run(tmp_path, server)
    stored = list(read_lines(tmp_path / "out.partial" / "data" / "verdicts.jsonl"))
    assert len(stored) >= 5
    server.requests.clear()
    run(tmp_path, server)
    assert len(server.requests) == 8 - len(stored)  # none of those again


def test_the_command_asks_an_endpoint_from_two_workers(tmp_path, server):
    data = save(tmp_path / "data", dataset([picture(n, (32, 24)) for n in range(40)]))  # two chunks
    server.answers = lambda first, second: SAME if int(first, 16) % 2 else DIFFERENT  # to its odd pairs, always
    command = [sys.executable, "-m", "q_hawkeye_trl", "pair", "--data", data, "--out", tmp_path / "out"]
    command += ["--workers", "2", "--judge", "some/judge", "--judge-url", server.url, "--degradations", "jpeg@5"]
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = lines_of(tmp_path / "out")
    odd = [int(line["pixel_hash"], 16) % 2 == 1 for line in lines]
    assert 5 < sum(odd) < 35
    assert [line["verdict"] == "too_mild" for line in lines] == odd
    assert [line["first_reason"] for line in lines] == ["judge" if o else None for o in odd]
    assert len(server.requests) == 40 + sum(odd)  # the strengthened ones twice, nothing else again
    assert len(list(read_lines(tmp_path / "out" / "verdicts.jsonl"))) == len(server.requests)


def test_the_address_may_change_but_not_the_judge(tmp_path, server):
    run(tmp_path, server)
    assert run(tmp_path, server, judge=JudgeSettings("some/judge", "http://127.0.0.1:1/v1")).made == 0
    with pytest.raises(FileExistsError, match="judge"):
        run(tmp_path, server, judge=JudgeSettings("another", server.url))


# --- a local checkpoint: the bundled policy, which answers with scores ---


@pytest.mark.parametrize(("fails", "error"), [(False, "neither same nor different: '.+'"), (True, "out of memory")])
def test_a_checkpoint_without_a_verdict_loses_no_pair(tmp_path, monkeypatch, fails, error):
    def refuse(self, *arguments, **options):
        raise RuntimeError("out of memory")

    if fails:
        monkeypatch.setattr(type(AutoProcessor.from_pretrained(str(demo_policy_path()))), "__call__", refuse)
    data = save(tmp_path / "data", dataset([picture(n, (112, 84)) for n in range(2)]))
    judge = JudgeSettings(str(demo_policy_path()), max_tokens=24)
    assert make(data, tmp_path / "out", judge=judge, degradations=["jpeg@5"]).verdicts == {"unjudged": 2}
    for line in lines_of(tmp_path / "out"):
        assert re.search(error, line["error"])
        assert line["kept"]


def test_the_words_of_a_checkpoint_are_its_verdict(monkeypatch):
    judge = build_judge(JudgeSettings(str(demo_policy_path()), max_tokens=4))
    kind = type(AutoProcessor.from_pretrained(str(demo_policy_path())))
    monkeypatch.setattr(kind, "batch_decode", lambda self, *arguments, **options: [SAME])
    assert judge(picture(0, (112, 84)), picture(1, (112, 84))) == Verdict(False, SAME)
