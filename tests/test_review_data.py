"""What the review page shows, and what its server lets through."""

import asyncio
import subprocess
import sys

import pytest

from pair_sets import dataset, picture, save
from q_hawkeye_trl.pairs.decisions import Filters, ReviewData, read_decisions
from q_hawkeye_trl.pairs.pair_manifest import PairKey, read_manifest
from q_hawkeye_trl.pairs.pair_run import make_pairs
from q_hawkeye_trl.pairs.pair_settings import PairSettings
from q_hawkeye_trl.pairs.review_page import PageGuard


def pairs(tmp_path, images=None, **settings):
    data = save(tmp_path / "data", dataset(images or [picture(n) for n in range(8)]))
    settings = {"degradations": ["jpeg@2", "gaussian_noise@4", "darken@3"], **settings}
    make_pairs(data, tmp_path / "pairs", PairSettings(**settings), progress=False)
    return tmp_path / "pairs"


@pytest.fixture
def data(tmp_path):
    return ReviewData(pairs(tmp_path), tmp_path / "decisions.jsonl")


def test_filters_let_through_what_they_say(data):
    every = data.matching(Filters(state="all", order="in order"))
    assert every == [str(n) for n in range(8)]
    for kind in ("jpeg", "gaussian_noise", "darken"):
        ids = data.matching(Filters(kind=kind))
        assert ids
        assert all(kind in data.pairs[name]["operation"] for name in ids)
    assert all("@4" in data.pairs[name]["operation"] for name in data.matching(Filters(severity="4")))
    assert data.matching(Filters(dataset="spaq", order="in order")) == ["0", "2", "4", "6"]
    assert data.matching(Filters(verdict="rejected")) == []
    assert set(data.choices("kind")) >= {"any", "jpeg", "darken"}
    assert data.choices("dataset") == ["any", "koniq10k", "spaq"]


def test_the_mildest_come_first(data):
    values = [data.pairs[name]["ssim"] for name in data.matching(Filters())]
    assert values == sorted(values, reverse=True)


def test_next_and_back_go_around(data):
    filters = Filters(state="all", order="in order")
    assert data.next_id("0", filters) == "1"
    assert data.next_id("7", filters) == "0"
    assert data.next_id("3", filters, -1) == "2"
    assert data.next_id("0", filters, -1) == "7"
    assert data.next_id("", filters) == "0"


def test_decided_pairs_leave_the_undecided_ones_and_undo_brings_them_back(data):
    filters = Filters(order="in order")
    data.decide("2", "accept")
    data.decide("3", "reject")
    assert data.matching(filters) == ["0", "1", "4", "5", "6", "7"]
    assert data.next_id("3", filters) == "4"
    assert data.matching(Filters(state="accepted")) == ["2"]
    assert data.matching(Filters(state="rejected")) == ["3"]
    assert data.counts() == {"all": 8, "accepted": 1, "rejected": 1}
    assert data.undo() == "3"
    assert data.undo() == "2"
    assert data.undo() == ""
    assert data.counts() == {"all": 8, "accepted": 0, "rejected": 0}
    assert read_decisions(data.path) == {}
    for name in list(data.pairs):
        data.decide(name, "accept")
    assert data.next_id("7", filters) == ""


def test_a_decision_is_on_the_disk_when_the_call_returns_and_another_start_reads_it(data):
    data.decide("5", "reject")
    pair = data.pairs["5"]
    key = PairKey(pair["pixel_hash"], pair["degraded_pixel_hash"])
    assert read_decisions(data.path) == {key: "reject"}
    assert ReviewData(data.folder, data.path).state("5") == "rejected"


def test_pictures_are_the_pair(data):
    shown = data.pictures("4")
    assert shown.problem is None
    assert shown.original.tobytes() == picture(4).tobytes()
    assert shown.view.size == shown.original.size
    assert shown.view.tobytes() != shown.original.tobytes()


def test_originals_that_changed_or_hide_behind_links_are_not_shown(tmp_path):
    (tmp_path / "images").mkdir()
    files = [tmp_path / "images" / f"{n}.png" for n in range(3)]
    picture(0).save(files[0])
    picture(1).save(tmp_path / "secret.png")
    files[1].symlink_to(tmp_path / "secret.png")
    picture(2).save(files[2])
    folder = pairs(tmp_path, files)
    picture(9).save(files[2])
    data = ReviewData(folder, tmp_path / "d")
    assert data.pictures("0").problem is None
    assert data.pictures("1").original is None
    assert "--follow-links" in data.pictures("1").problem
    assert "has changed" in data.pictures("2").problem
    assert ReviewData(folder, tmp_path / "d", follow_links=True).pictures("1").problem is None
    files[0].unlink()
    assert str(files[0]) in data.pictures("0").problem


def test_only_pairs_with_a_view_are_shown(tmp_path):
    folder = pairs(tmp_path, [picture(0), b"broken", picture(1)])
    assert [pair["row"] for pair in ReviewData(folder, tmp_path / "d").pairs.values()] == [0, 2]
    assert len(read_manifest(folder)) == 3


def test_folders_without_pairs_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no .*pairs\.parquet"):
        ReviewData(tmp_path, tmp_path / "d")
    folder = pairs(tmp_path, [b"broken"])
    with pytest.raises(ValueError, match="no pair to review"):
        ReviewData(folder, tmp_path / "d")


def test_without_gradio_the_message_says_how_to_install_it(tmp_path):
    code = (
        "import sys; sys.modules['gradio'] = None; sys.argv = ['q-hawkeye', 'review', sys.argv[1]];"
        "from q_hawkeye_trl.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, pairs(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "q-hawkeye: The review page needs Gradio, which is not installed: pip install 'q-hawkeye-trl[review]'."
    )


# --- the guard ---


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/", True),
        ("/assets/index.js", True),
        ("/gradio_api/queue/join", True),
        ("/gradio_api/file={cache}/a/b.png", True),
        ("/gradio_api/file={cache}/../secret", False),
        ("/gradio_api/file={cache}/%2e%2e/secret", False),
        ("/gradio_api/file={cache}/link/secret", False),
        ("/gradio_api/file=/etc/passwd", False),
        ("/gradio_api/file%3D/etc/passwd", False),
        ("/gradio_api/file=http://127.0.0.1:1/a", False),
        ("/gradio_api/file/etc/passwd", False),
        ("/file=/etc/passwd", False),
        ("/gradio_api/upload", False),
        ("/gradio_api/proxy=http://127.0.0.1:1/", False),
        ("/gradio_api/process_recording", False),
        ("/gradio_api/call/accept", False),
        ("/gradio_api/profiling/summary", False),
        ("/gradio_api/heartbeat/abc", True),
        ("/monitoring/summary", False),
    ],
)
def test_the_guard_lets_only_the_pages_own_files_through(tmp_path, path, allowed):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "link").symlink_to(tmp_path)
    sent, passed = [], []

    async def app(scope, receive, send):
        passed.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path.format(cache=tmp_path / "cache")}
    asyncio.run(PageGuard(app, tmp_path / "cache")(scope, None, send))
    assert bool(passed) == allowed
    assert sent[0]["status"] == (200 if allowed else 403)
    if allowed:
        assert b"default-src 'self'" in dict(sent[0]["headers"])[b"content-security-policy"]


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ([(b"host", b"127.0.0.1:7860")], True),
        ([(b"host", b"localhost")], True),
        ([(b"Host", b"[::1]:7860")], True),
        ([(b"host", b"evil.example:7860")], False),  # a name that was made to point at this machine
        ([(b"host", b"127.0.0.1.evil.example")], False),
        ([(b"host", b"evil.example@127.0.0.1")], True),  # the part before @ is no host
        ([(b"host", b"127.0.0.1"), (b"host", b"evil.example")], False),
        ([(b"host", b"[::1")], False),
        ([], False),
    ],
)
def test_the_guard_knows_by_which_name_it_is_called(tmp_path, headers, allowed):
    hosts = ("127.0.0.1", "localhost", "::1")
    assert PageGuard(None, tmp_path, hosts).is_called_by_name(headers) == allowed
    assert PageGuard(None, tmp_path).is_called_by_name(headers)


def test_the_guard_answers_foreign_names_itself(tmp_path):
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": "/", "headers": [(b"host", b"evil.example")]}
    asyncio.run(PageGuard(None, tmp_path, ("127.0.0.1",))(scope, None, send))  # there is no application to ask
    assert sent[0]["status"] == 403
