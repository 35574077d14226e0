"""Every command of docs/evaluation.md that evaluates is run as it stands there; those that train are run small."""

import csv
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from PIL import Image
from typer.testing import CliRunner

from q_hawkeye_trl.cli import app
from q_hawkeye_trl.demo.policy import demo_policy_path
from q_hawkeye_trl.demo.synthetic import content_seed, draw_sample
from q_hawkeye_trl.evaluation.public_sets import PRESETS
from test_docs import FENCE, inline_code

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
BLOCKS = "\n".join(body for language, body in FENCE.findall(TEXT) if language == "bash").splitlines()
COMMANDS = [line for line in BLOCKS if line.startswith("q-hawkeye evaluate")]
COMMANDS += [code for code in inline_code(FENCE.sub("", TEXT)) if code.startswith("q-hawkeye evaluate --")]
TRAINING = [line for line in BLOCKS if line.startswith("q-hawkeye train")]


def write_csv(path: Path, seed: int, scale: float = 1.0) -> None:
    rng = np.random.default_rng(seed)
    quality = np.random.default_rng(1).uniform(1, 5, size=60)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "score", "mos"])
        for i, value in enumerate(quality):
            score = np.clip(value + 0.4 * rng.normal(), 1, 5)
            if scale == 1:
                writer.writerow([i, f"{score:.2f}", f"{value:.3f}"])
            else:  # scores of 0 to 100, and a DMOS
                writer.writerow([i, f"{25 * (score - 1):.1f}", f"{1 - (value - 1) / 4:.4f}"])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with the files that the page names."""
    folder = tmp_path_factory.mktemp("docs")
    write_csv(folder / "scores.csv", seed=2)
    write_csv(folder / "other.csv", seed=3)
    write_csv(folder / "percent.csv", seed=4, scale=100)
    shutil.copytree(demo_policy_path(), folder / "runs" / "koniq")
    rows = []
    for index in range(9):
        sample = draw_sample(content_seed("test", 4, index))
        rows.append(
            {
                "image": Image.fromarray(sample.picture),
                "image_id": f"I0{index // 3 + 1}_0{index % 3 + 1}_01.png",
                "reference": f"I0{index // 3 + 1}.png",
                "dataset": "kadid10k",
                "mos": sample.quality,
                "mos_raw": sample.quality,
            }
        )
    DatasetDict({"test": Dataset.from_list(rows)}).save_to_disk(folder / "data" / "kadid10k")
    return folder


def test_the_page_has_commands():
    assert len(COMMANDS) >= 6
    assert len(TRAINING) == 4


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(workplace, monkeypatch, command):
    monkeypatch.chdir(workplace)
    words = shlex.split(command)[1:]
    # fewer draws and short answers for the sake of time; outputs of an earlier command may stand there
    small = ["--draws", "10", "--overwrite", *(["--max-new-tokens", "24"] if "--data" in words else [])]
    result = CliRunner().invoke(app, [*words, *small], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "PLCC" in result.stdout
    for option, form in (("--json", json.loads), ("--markdown", str), ("--html", str)):
        if option in words:
            assert form(Path(words[words.index(option) + 1]).read_text())


@pytest.mark.slow
@pytest.mark.parametrize("command", TRAINING)
def test_training_commands_run_small(tmp_path, monkeypatch, command):
    from test_train_koniq import TINY, evaluations, run_script, write_synthetic_koniq

    data = tmp_path / "koniq10k"
    write_synthetic_koniq(data, train=16, validation=4, test=8, progress=False)
    words = shlex.split(command)[2:]
    run_script(monkeypatch, *TINY, "--data_dir", data, "--output_dir", tmp_path / "run", *words)
    assert bool(evaluations(tmp_path / "run")) == ("--validate" not in words)


def test_protocols_and_keys_of_the_page_exist(workplace, monkeypatch):
    named = set(re.findall(r"^\| `([a-z-]+)` \|", TEXT, re.MULTILINE))
    assert set(PRESETS) <= named
    monkeypatch.chdir(workplace)
    words = ["evaluate", "--scores", "scores.csv", "--draws", "4", "--json", "keys.json", "--overwrite"]
    CliRunner().invoke(app, words, catch_exceptions=False)
    keys = set(json.loads(Path("keys.json").read_text())["scores"])
    section = TEXT.split("## Keys of the JSON")[1].split("## ")[0]
    missing = {code for code in inline_code(section) if re.fullmatch(r"[a-z_]+", code)} - keys - {"_low", "_high"}
    assert missing == {"image", "group"}  # values
