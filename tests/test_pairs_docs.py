"""docs/pairs.md: every command runs, every table is true."""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from datasets import DatasetDict, load_from_disk

from pair_sets import dataset, picture, save
from q_hawkeye_trl.data.degradations import DEGRADATIONS, SEVERITIES, SPATIAL_SEVERITIES
from q_hawkeye_trl.demo.policy import demo_policy_path
from q_hawkeye_trl.pairs.decisions import append_decision
from q_hawkeye_trl.pairs.pair_manifest import SCHEMA, VERDICTS, PairKey, read_manifest
from test_docs import FENCE

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "pairs.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return [body for found, body in FENCE.findall(PAGE) if found == language]


COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]


def test_the_table_of_strengths_is_that_of_the_code():
    rows = {}
    for line in PAGE.splitlines():
        match = re.match(r"\| `(\w+)` \|[^|]+\|(.*)\|$", line)
        if match and match.group(1) in DEGRADATIONS:
            rows[match.group(1)] = [cell.strip() for cell in match.group(2).split("|")]
    assert set(rows) == set(DEGRADATIONS)
    for kind, (_, values) in SEVERITIES.items():
        assert [float(cell) for cell in rows[kind]] == list(values), kind
    for kind, (_, neutral, shares) in SPATIAL_SEVERITIES.items():
        expected = [(float(neutral), share) for share in shares]
        cells = [re.fullmatch(r"([\d.]+) \+ ([\d.]+) s", cell).groups() for cell in rows[kind]]
        assert [(float(a), float(b)) for a, b in cells] == expected, kind


def test_every_column_and_verdict_is_explained():
    table = PAGE[PAGE.index("## The manifest") : PAGE.index("## Review")]
    named = set(re.findall(r"`(\w+)`", table))
    assert set(SCHEMA.names) <= named
    assert set(VERDICTS) <= named


def q_hawkeye(words: list[str], folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "q_hawkeye_trl", *words]
    # the endpoint is on this machine, and the client of huggingface_hub asks nobody while it is offline
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    environment["HF_DATASETS_OFFLINE"] = "1"
    return subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=folder, env=environment)


def review(words: list[str], folder: Path) -> None:
    """Starts the page, waits until it is there, and ends it."""
    command = [sys.executable, "-m", "q_hawkeye_trl", *words, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder) as process:
        watchdog = threading.Timer(100, process.kill)
        watchdog.start()
        said = ""
        while " at http://127.0.0.1:" not in said and (line := process.stdout.readline()):
            said += line
        process.send_signal(signal.SIGINT)
        process.wait()
        watchdog.cancel()
    assert " at http://127.0.0.1:" in said, said


@pytest.mark.slow
def test_the_commands_run(tmp_path):
    pytest.importorskip("gradio", reason="the extra `review` is not installed")
    rows = {"train": dataset([picture(n, (112, 84)) for n in range(4)]), "test": dataset([picture(9, (112, 84))])}
    save(tmp_path / "data" / "koniq10k", DatasetDict(rows))
    ran = []
    for command in COMMANDS:
        words = shlex.split(command)
        ran.append(words[:2])
        if words[:2] == ["q-hawkeye", "review"]:
            review(words[1:], tmp_path)
            line = read_manifest(tmp_path / words[2]).to_pylist()[0]
            key = PairKey(line["pixel_hash"], line["degraded_pixel_hash"])
            append_decision(tmp_path / words[2] / "decisions.jsonl", key, "reject")
        elif words[0] == "q-hawkeye":
            words = [str(demo_policy_path()) if word == "PATH/checkpoint" else word for word in words]
            words = ["http://127.0.0.1:1/v1" if word.startswith("http://127") else word for word in words]
            done = q_hawkeye(words[1:], tmp_path)
            # nobody answers at that address, and the bundled policy is no judge: pairs without a verdict
            assert done.returncode == (1 if "--judge" in words else 0), f"{command}\n{done.stdout}\n{done.stderr}"
            out = words[words.index("--out") + 1]
            assert load_from_disk(str(tmp_path / out))["train"].column_names[-1] == "degraded_image"
        elif words[0] == "accelerate":
            pass  # tests/test_pair_training.py trains on such a folder, tests/test_docs.py checks the options
        else:
            small = ["--images", "4", "--loop_images", "2", "--repeats", "1", "--memory_images", "3"]
            words = words[words.index("python") + 1 :]
            words = [str(ROOT / words[0]), *words[1:], *(small if words[0].startswith("benchmarks") else [])]
            done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=200, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
    assert len(ran) >= 9
    (snippet,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "operation" in done.stdout
