"""What the review page shows, and what its server lets through."""

import asyncio
import subprocess
import sys

import pytest

from pair_sets import dataset, make, picture, save
from q_hawkeye_trl.pairs.decisions import Filters, ReviewData, read_decisions
from q_hawkeye_trl.pairs.pair_manifest import PairKey
from q_hawkeye_trl.pairs.review_page import PageGuard


def pairs(tmp_path, images=8):
    data = save(tmp_path / "data", dataset(images))
    make(data, tmp_path / "pairs", degradations=["jpeg@2", "gaussian_noise@4", "darken@3"])
    return tmp_path / "pairs"


@pytest.fixture
def data(tmp_path):
    return ReviewData(pairs(tmp_path), tmp_path / "decisions.jsonl")


def test_filters_select_what_they_name(data):
    assert data.matching(Filters(state="all", order="in order")) == [str(n) for n in range(8)]
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


@pytest.mark.parametrize(
    ("current", "step", "expected"), [("0", 1, "1"), ("7", 1, "0"), ("3", -1, "2"), ("0", -1, "7"), ("", 1, "0")]
)
def test_next_and_back_go_around(data, current, step, expected):
    assert data.next_id(current, Filters(state="all", order="in order"), step) == expected


def test_decided_pairs_leave_the_undecided_ones_and_undo_returns_them(data):
    filters = Filters(order="in order")
    data.decide("2", "accept")
    data.decide("3", "reject")
    assert data.matching(filters) == ["0", "1", "4", "5", "6", "7"]
    assert data.next_id("3", filters) == "4"
    assert data.next_id("3", filters, -1) == "1"
    assert data.matching(Filters(state="accepted")) == ["2"]
    assert data.matching(Filters(state="rejected")) == ["3"]
    assert data.counts() == {"all": 8, "accepted": 1, "rejected": 1}
    assert [data.undo() for _ in range(3)] == ["3", "2", ""]
    assert data.counts() == {"all": 8, "accepted": 0, "rejected": 0}
    assert read_decisions(data.path) == {}
    for name in data.pairs:
        data.decide(name, "accept")
    assert data.next_id("7", filters) == ""


def test_a_decision_is_on_disk_when_the_call_returns_and_the_next_start_reads_it(data):
    data.decide("5", "reject")
    assert read_decisions(data.path) == {PairKey.of(data.pairs["5"]): "reject"}
    assert ReviewData(data.folder, data.path).state("5") == "rejected"


def test_pictures_are_the_pair(data):
    shown = data.pictures("4")
    assert shown.problem is None
    assert shown.original.tobytes() == picture(4).tobytes()
    assert shown.view.size == shown.original.size
    assert shown.view.tobytes() != shown.original.tobytes()


def test_originals_that_changed_or_are_behind_links_are_not_shown(tmp_path):
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
    data = ReviewData(pairs(tmp_path, [picture(0), b"broken", picture(1)]), tmp_path / "d")
    assert [pair["row"] for pair in data.pairs.values()] == [0, 2]


def test_folders_without_pairs_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pairs\.parquet"):
        ReviewData(tmp_path, tmp_path / "d")
    folder = pairs(tmp_path, [b"broken"])
    with pytest.raises(ValueError, match=str(folder)):
        ReviewData(folder, tmp_path / "d")


def test_without_gradio_the_message_says_how_to_install_it(tmp_path):
    code = (
        "import sys; sys.modules['gradio'] = None; sys.argv = ['q-hawkeye', 'review', sys.argv[1]];"
        "from q_hawkeye_trl.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, pairs(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "pip install 'q-hawkeye-trl[review]'" in done.stderr


# --- the guard ---


def ask(guard, path="/", headers=()):
    """The replies of the guard, and whether it asked the application."""
    sent, passed = [], []

    async def app(scope, receive, send):
        passed.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    guard.app = app
    asyncio.run(guard({"type": "http", "path": path, "headers": list(headers)}, None, send))
    return sent[0], bool(passed)


PASSED = """
    / /assets/index.js /gradio_api/queue/join /gradio_api/heartbeat/abc /gradio_api/file={cache}/a/b.png
"""
REFUSED = """
    /gradio_api/file={cache}/../secret /gradio_api/file={cache}/%2e%2e/secret /gradio_api/file={cache}/link/secret
    /gradio_api/file=/etc/passwd /gradio_api/file%3D/etc/passwd /gradio_api/file=http://127.0.0.1:1/a
    /gradio_api/file/etc/passwd /file=/etc/passwd /gradio_api/upload /gradio_api/proxy=http://127.0.0.1:1/
    /gradio_api/process_recording /gradio_api/call/accept /gradio_api/profiling/summary /monitoring/summary
"""


@pytest.mark.parametrize("path", [*PASSED.split(), *REFUSED.split()])
def test_the_guard_passes_only_the_routes_and_files_of_the_page(tmp_path, path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "link").symlink_to(tmp_path)
    reply, passed = ask(PageGuard(None, tmp_path / "cache"), path.format(cache=tmp_path / "cache"))
    assert (reply["status"], passed) == ((200, True) if path in PASSED.split() else (403, False))
    assert not passed or b"default-src 'self'" in dict(reply["headers"])[b"content-security-policy"]


HOST = b"127.0.0.1:7860"


@pytest.mark.parametrize("hosts", [[HOST], [b"localhost"], [b"[::1]:7860"], [b"evil.example@127.0.0.1"]])
def test_the_guard_passes_its_own_names(tmp_path, hosts):
    assert named(tmp_path, hosts)


# a name that resolves to this machine, two names, a broken one, and none
FOREIGN = [[b"evil.example:7860"], [b"127.0.0.1.evil.example"], [HOST, b"evil.example"], [b"[::1"], []]


@pytest.mark.parametrize("hosts", FOREIGN)
def test_the_guard_refuses_foreign_names(tmp_path, hosts):
    assert not named(tmp_path, hosts)
    assert ask(PageGuard(None, tmp_path), headers=[(b"host", host) for host in hosts])[1]  # open to other machines


def named(tmp_path, hosts, *origins) -> bool:
    """Whether the guard passes a request with these headers."""
    headers = [(b"Host" if number else b"host", host) for number, host in enumerate(hosts)]
    headers += [(b"origin", origin) for origin in origins]
    reply, passed = ask(PageGuard(None, tmp_path, ("127.0.0.1", "localhost", "::1")), headers=headers)
    assert reply["status"] == (200 if passed else 403)
    return passed


@pytest.mark.parametrize("origins", [[b"http://evil.example"], [b"null"], [b"http://127.0.0.1:80"], [b"http://[::1"]])
def test_the_guard_refuses_requests_of_other_sites(tmp_path, origins):
    own = b"http://" + HOST
    assert named(tmp_path, [HOST], own)
    assert not named(tmp_path, [HOST], *origins)
    assert not named(tmp_path, [HOST], own, *origins)
    headers = [(b"host", b"example.org"), *((b"origin", origin) for origin in origins)]
    assert not ask(PageGuard(None, tmp_path), headers=headers)[1]
