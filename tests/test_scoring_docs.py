"""Every command and snippet of docs/scoring.md runs, and leaves what the page says."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image

from q_hawkeye_trl.demo.policy import demo_policy_path
from q_hawkeye_trl.demo.synthetic import content_seed, draw_sample
from q_hawkeye_trl.scoring.policy import load_policy
from test_cli_score import FIELDS, q_hawkeye
from test_docs import ROOT, fences, text_of

PAGE = ROOT / "docs" / "scoring.md"
COMMANDS = [line for block in fences(PAGE, "bash") for line in block.splitlines() if line]
OURS = [command for command in COMMANDS if command.startswith("q-hawkeye ")]
LAUNCHED = [command for command in COMMANDS if command not in OURS]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with the pictures, data and models that the page's commands name."""
    place = tmp_path_factory.mktemp("docs")
    (place / "pictures").mkdir()
    for index, name in enumerate(("a.jpg", "b.png", "c.png")):
        Image.fromarray(draw_sample(content_seed("test", 0, index)).picture).save(place / "pictures" / name)
    files = sorted(str(path) for path in (place / "pictures").iterdir())
    rows = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": rows, "test": rows.select([0, 1])}).save_to_disk(place / "data")
    shutil.copytree(demo_policy_path(), place / "runs" / "koniq")
    model, processor = load_policy(place / "runs" / "koniq")
    torch.manual_seed(0)
    adapter = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapter.save_pretrained(place / "runs" / "lora")
    processor.save_pretrained(place / "runs" / "lora")
    return place


def rows_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_the_commands_run_in_order(place, monkeypatch):
    monkeypatch.chdir(place)
    for command in OURS:
        output = q_hawkeye(*shlex.split(command)[1:])
        for option in ("--out", "--html"):
            if option in command:
                (name,) = re.findall(rf"{option} (\S+)", command)
                assert Path(name).exists(), command
                assert name in output
    assert len(rows_of(place / "toy.jsonl")) == 3
    assert set(rows_of(place / "toy.jsonl")[0]) == FIELDS
    assert (place / "rollouts.csv").read_text().count("\n") == 4  # a.jpg and the two that the glob finds
    assert (place / "runs" / "merged" / "model.safetensors").is_file()
    assert len(OURS) == 6


def test_the_snippets_run(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    names: dict = {}
    for block in fences(PAGE, "python"):
        exec(compile(block, str(PAGE), "exec"), names)
    printed = capsys.readouterr().out
    assert printed.count("pictures/") == 2
    assert "tensor(" in printed
    assert all(1 <= reward <= 5 for reward in names["rewards"])


def test_the_table_of_fields_is_that_of_the_file():
    described = re.findall(r"^\| `(\w+)` \|", text_of(PAGE), re.MULTILINE)
    assert set(described) == FIELDS | {"reasoning"}


def test_options_in_the_text_exist():
    helped = q_hawkeye("score", "--help") + q_hawkeye("merge", "--help")
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", text_of(PAGE)))
    launchers = {"--num_processes", "--cpu", "--standalone", "--nproc_per_node"}
    assert named - launchers <= set(re.findall(r"--[a-z][\w-]+", helped))


@pytest.mark.slow
@pytest.mark.parametrize("command", LAUNCHED)
def test_launched_commands_run(place, command):
    for leftover in ("scores.jsonl", "two.jsonl"):
        (place / leftover).unlink(missing_ok=True)
    words = shlex.split(command.replace("--num_processes 4", "--num_processes 1 --cpu"))
    if words[0] == "python":
        words[0] = sys.executable
    else:
        words[:1] = [sys.executable, "-m", "accelerate.commands.accelerate_cli"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, timeout=280)
    assert process.returncode == 0, process.stderr[-3000:]
    assert len(rows_of(place / command.split()[-1])) == 3
