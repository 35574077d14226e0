"""VLM judges: the answer's form, a real HTTP server on this machine, a real checkpoint."""

import base64
import io
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import pytest
from PIL import Image

import q_hawkeye_trl.pairs.judge as judge_module
from pair_sets import dataset, picture, save
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
from q_hawkeye_trl.pairs.pair_manifest import read_manifest
from q_hawkeye_trl.pairs.pair_run import make_pairs
from q_hawkeye_trl.pairs.pair_settings import PairSettings

DIFFERENT = "<think>blocks</think><answer>different</answer>"
SAME = "<answer>same</answer>"


@pytest.fixture(autouse=True)
def _loopback(monkeypatch):
    monkeypatch.setattr(
        huggingface_hub.constants, "HF_HUB_OFFLINE", False
    )  # the client is asked for this machine only
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
            pictures = [
                Image.open(io.BytesIO(base64.b64decode(b["image_url"]["url"].split(",")[1]))) for b in blocks[:2]
            ]
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
    ],
)
def test_answers_are_read(answer, different):
    assert parse_verdict(answer) == Verdict(different, answer)


@pytest.mark.parametrize(
    "answer", ["", "I see no difference", "<answer>3.5</answer>", "same different", "<answer></answer>"]
)
def test_other_answers_are_no_verdict(answer):
    with pytest.raises(JudgeError, match="neither same nor different"):
        parse_verdict(answer)


def test_an_endpoint_gets_both_pictures_unharmed_and_no_token_of_the_user(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    assert ask(server) == Verdict(True, DIFFERENT)
    ((path, headers, body, pictures),) = server.requests
    assert path == "/v1/chat/completions"
    assert [pixel_hash(image) for image in pictures] == [pixel_hash(picture(0)), pixel_hash(picture(1))]
    assert body["model"] == "some/judge"
    assert body["temperature"] == 0
    assert body["messages"][0]["content"][2] == {"type": "text", "text": JUDGE_PROMPT}
    assert authorization(headers) == "Bearer EMPTY"
    monkeypatch.setenv("MY_KEY", "secret-1")
    ask(server, key_variable="MY_KEY")
    assert authorization(server.requests[-1][1]) == "Bearer secret-1"


def test_passing_failures_are_tried_again_and_lasting_ones_are_told(server):
    replies = [503, 429, SAME]
    server.answers = lambda first, second: replies.pop(0)
    assert ask(server) == Verdict(False, SAME)
    server.answers = lambda first, second: 500
    with pytest.raises(JudgeError, match="answered 500"):
        ask(server)
    assert len(server.requests) == 6
    server.answers = lambda first, second: 401
    with pytest.raises(JudgeError, match="answered 401"):
        ask(server)
    assert len(server.requests) == 7


def test_offline_mode_is_told_at_once(server, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"):
        ask(server)


def test_an_endpoint_that_is_not_there(server):
    judge = build_judge(JudgeSettings("j", "http://127.0.0.1:1/v1"))
    for _ in range(judge_module.FAILURES_IN_A_ROW):
        with pytest.raises(JudgeError, match=r"http://127\.0\.0\.1:1/v1"):
            judge(picture(0), picture(1))
    with pytest.raises(JudgeError, match="not asked"):
        judge(picture(0), picture(1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "127.0.0.1:8000"}, "http://"),
        ({"key_variable": "NO_SUCH_VARIABLE"}, "NO_SUCH_VARIABLE"),
        ({"timeout": 0}, "timeout"),
    ],
)
def test_settings_of_a_judge_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        JudgeSettings("j", **settings)


# --- the judge within a run ---


def run(tmp_path, server, out="out", images=8, **settings):
    data = tmp_path / "data"
    if not data.exists():
        save(data, dataset([picture(n) for n in range(images)]))
    judge = JudgeSettings("some/judge", server.url, concurrency=3)
    settings = {"degradations": ["gaussian_noise@4", "jpeg@5"], "second": ["darken@4"], "judge": judge, **settings}
    return make_pairs(data, tmp_path / out, PairSettings(**settings), progress=False)


def test_pairs_that_the_judge_takes_for_the_same_are_strengthened_and_judged_again(tmp_path, server):
    originals = [pixel_hash(picture(n)) for n in range(8)]
    seen = []

    def answers(first, second):
        seen.append(first)
        return SAME if first in originals[:3] and seen.count(first) == 1 else DIFFERENT

    server.answers = answers
    summary = run(tmp_path, server)
    lines = read_manifest(tmp_path / "out").to_pylist()
    assert [line["stage"] for line in lines] == ["strengthened"] * 3 + ["once"] * 5
    assert [line["first_reason"] for line in lines] == ["judge"] * 3 + [None] * 5
    assert all(line["operation"].endswith("+darken@4") for line in lines[:3])
    assert {line["judge"] for line in lines} == {"some/judge"}
    assert {line["judge_answer"] for line in lines} == {DIFFERENT}
    assert summary.verdicts == {"ok": 8}
    assert len(server.requests) == 11
    stored = list(read_lines(tmp_path / "out" / "verdicts.jsonl"))
    assert sum(line.content["different"] for line in stored) == 8
    assert len(stored) == 11


def test_pairs_that_are_too_mild_by_distance_are_not_shown_to_the_judge_before(tmp_path, server):
    run(tmp_path, server, mild_ssim=-1, mild_psnr=0)  # everything is too mild
    assert server.requests == []
    assert {line["verdict"] for line in read_manifest(tmp_path / "out").to_pylist()} == {"too_mild"}


def test_no_pair_is_lost_when_the_judge_fails_and_a_second_run_asks_only_what_is_missing(tmp_path, server):
    failing = {pixel_hash(picture(n)) for n in (2, 5)}
    server.answers = lambda first, second: 500 if first in failing else DIFFERENT
    summary = run(tmp_path, server)
    lines = read_manifest(tmp_path / "out").to_pylist()
    assert [line["verdict"] for line in lines] == ["ok", "ok", "unjudged", "ok", "ok", "unjudged", "ok", "ok"]
    assert all(line["kept"] for line in lines)
    assert "answered 500" in lines[2]["error"]
    assert summary.unfinished == 2
    server.requests.clear()
    server.answers = lambda first, second: DIFFERENT
    summary = run(tmp_path, server)
    assert {pixel_hash(pictures[0]) for *_, pictures in server.requests} == failing
    assert len(server.requests) == 2
    assert summary.verdicts == {"ok": 8}
    server.requests.clear()
    assert run(tmp_path, server).made == 0
    assert server.requests == []


def test_verdicts_are_stored_as_they_come(tmp_path, server, monkeypatch):
    class _Killed(Exception):
        pass

    def answers(first, second):
        if len(server.requests) == 5:
            server.answers = lambda first, second: DIFFERENT
            raise _Killed  # the connection breaks
        return DIFFERENT

    server.answers = answers
    monkeypatch.setattr(judge_module, "RETRIES", 1)

    from q_hawkeye_trl.pairs.making import PairMaker

    make = PairMaker.make

    def stopping(self, row):
        pair = make(self, row)
        if pair.record["verdict"] == "unjudged":
            raise _Killed
        return pair

    with monkeypatch.context() as patch:
        patch.setattr(PairMaker, "make", stopping)
        with pytest.raises(_Killed):
            run(tmp_path, server)
    stored = list(read_lines(tmp_path / "out.partial" / "data" / "verdicts.jsonl"))
    assert len(stored) >= 4
    asked = len(server.requests)
    run(tmp_path, server)
    assert len(server.requests) == asked + 8 - len(stored)  # none of those again


def test_the_command_asks_an_endpoint_from_two_workers(tmp_path, server):
    data = save(tmp_path / "data", dataset([picture(n, (32, 24)) for n in range(40)]))  # two chunks
    server.answers = lambda first, second: SAME if int(first, 16) % 2 else DIFFERENT  # to its odd pairs, always
    command = [sys.executable, "-m", "q_hawkeye_trl", "pair", "--data", data, "--out", tmp_path / "out"]
    command += ["--workers", "2", "--judge", "some/judge", "--judge-url", server.url, "--degradations", "jpeg@5"]
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = read_manifest(tmp_path / "out").to_pylist()
    odd = [int(line["pixel_hash"], 16) % 2 == 1 for line in lines]
    assert 5 < sum(odd) < 35
    assert [line["verdict"] == "too_mild" for line in lines] == odd
    assert [line["first_reason"] for line in lines] == ["judge" if o else None for o in odd]
    assert len(server.requests) == 40 + sum(odd)  # the strengthened ones twice, nothing else again
    assert len(list(read_lines(tmp_path / "out" / "verdicts.jsonl"))) == len(server.requests)


def test_the_address_may_change_but_not_the_judge(tmp_path, server):
    run(tmp_path, server)
    moved = JudgeSettings("some/judge", "http://127.0.0.1:1/v1")
    assert run(tmp_path, server, judge=moved).made == 0
    with pytest.raises(FileExistsError, match=r"other settings \(judge\)"):
        run(tmp_path, server, judge=JudgeSettings("another", server.url))


def test_a_checkpoint_judges(tmp_path):
    """The bundled policy is a real checkpoint, though it answers with scores: no verdict, and no pair lost."""
    data = save(tmp_path / "data", dataset([picture(n, (112, 84)) for n in range(2)]))
    judge = JudgeSettings(str(demo_policy_path()), max_tokens=24)
    settings = PairSettings(judge=judge, degradations=["jpeg@5"])
    summary = make_pairs(data, tmp_path / "out", settings, progress=False)
    lines = read_manifest(tmp_path / "out").to_pylist()
    assert summary.verdicts == {"unjudged": 2}
    assert all("neither same nor different" in line["error"] for line in lines)
    assert all(len(line["error"].split(": ", 1)[1]) > 10 for line in lines)  # it did say something
    assert all(line["kept"] for line in lines)


def test_a_checkpoint_that_fails_on_a_pair_does_not_end_the_run(tmp_path, monkeypatch):
    from transformers import AutoProcessor

    kind = type(AutoProcessor.from_pretrained(str(demo_policy_path())))

    def refuse(self, *arguments, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(kind, "__call__", refuse)
    data = save(tmp_path / "data", dataset([picture(n, (112, 84)) for n in range(2)]))
    judge = JudgeSettings(str(demo_policy_path()))
    summary = make_pairs(data, tmp_path / "out", PairSettings(judge=judge, degradations=["jpeg@5"]), progress=False)
    assert summary.verdicts == {"unjudged": 2}
    assert "RuntimeError: out of memory" in summary.problems[0][2]


def test_a_checkpoints_words_count(monkeypatch):
    from transformers import AutoProcessor

    judge = build_judge(JudgeSettings(str(demo_policy_path()), max_tokens=4))
    kind = type(AutoProcessor.from_pretrained(str(demo_policy_path())))
    monkeypatch.setattr(kind, "batch_decode", lambda self, *arguments, **options: [SAME])
    assert judge(picture(0, (112, 84)), picture(1, (112, 84))) == Verdict(False, SAME)


def test_a_judge_is_given_up_after_so_many_failures_in_a_row_and_not_before(monkeypatch):
    asked, answers = [], iter([*[None] * (FAILURES_IN_A_ROW - 1), True, *[None] * FAILURES_IN_A_ROW, True])

    def ask(original, view):
        asked.append(1)
        if next(answers) is None:
            raise JudgeError("broken")
        return "different"

    monkeypatch.setattr("q_hawkeye_trl.pairs.judge._endpoint", lambda settings: ask)
    judge = build_judge(JudgeSettings("m", "http://127.0.0.1:1/v1"))
    for _ in range(FAILURES_IN_A_ROW - 1):
        with pytest.raises(JudgeError, match="broken"):
            judge(picture(0), picture(1))
    assert judge(picture(0), picture(1)).different  # which starts the count anew
    for _ in range(FAILURES_IN_A_ROW):
        with pytest.raises(JudgeError, match="broken"):
            judge(picture(0), picture(1))
    with pytest.raises(JudgeError, match="not asked"):
        judge(picture(0), picture(1))
    assert len(asked) == 2 * FAILURES_IN_A_ROW
