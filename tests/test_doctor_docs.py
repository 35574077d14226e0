"""docs/doctor.md: its commands run, its tables and its sample name what there is, its versions are those installed."""

import configparser
import json
import re
import shlex

import pytest

from doctor_plans import saved_splits as write
from doctor_plans import three_splits as three
from harness import build_trainer
from q_hawkeye_trl.doctor import LEVELS
from q_hawkeye_trl.run_facts.log import FACTS_FILE, read_launches
from test_cli_score import q_hawkeye
from test_docs import ROOT, fences, text_of
from tiny_models import tiny_dataset

PAGE = ROOT / "docs" / "doctor.md"
COMMANDS = [line for block in fences(PAGE, "bash") for line in block.splitlines() if line]
VERSIONS = re.compile(
    r"suite ran against TRL ([\d.]+), with transformers ([\d.]+), torch ([\d.]+) and accelerate ([\d.]+) on\s+"
    r"Python ([\d.]+)"
)


def cells(column: int) -> list[str]:
    rows = [line for line in text_of(PAGE).splitlines() if line.startswith("| ")]
    return [row.strip("| ").split(" | ")[column] for row in rows]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> tuple[dict[str, str], dict]:
    """What each command of the page prints, and what `--json` writes."""
    place = tmp_path_factory.mktemp("docs")
    write(place / "data", **three())
    (place / "recipes").symlink_to(ROOT / "recipes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        printed = {command: q_hawkeye(*shlex.split(command)[1:]) for command in COMMANDS}
    assert len(printed) == 3
    assert not (place / "runs").exists()
    return printed, json.loads((place / "doctor.json").read_text())


def test_the_commands_run(outputs):
    printed, written = outputs
    for command, output in printed.items():
        assert "0 problems" in output, command
    assert written["facts"]["data"]["train"]["rows"] == 4
    assert len(written["facts"]["data"]["train"]["sha256"]) == 64


def test_the_table_names_every_area(outputs):
    named = {area for cell in cells(0) for area in cell.split(", ")}
    areas = {finding["area"] for finding in outputs[1]["findings"]}
    found = {"data" if area.startswith("data ") else area for area in areas}
    assert found <= named, found - named


def test_the_sample_is_what_the_command_prints(outputs):
    """Figures are those of another machine; the lines and their levels are these."""
    (sample,) = fences(PAGE, "text")
    printed = outputs[0]["q-hawkeye doctor --data data --output_dir runs/first"]
    pattern = re.compile(rf"^((?:{'|'.join(LEVELS)})\s+\S+(?: \S+)*|\w+)  +\S", re.MULTILINE)

    def first_columns(text: str) -> list[str]:
        return [" ".join(start.split()) for start in pattern.findall(text)]

    assert first_columns(sample)
    assert first_columns(sample) == first_columns(printed)


def test_options_in_the_text_exist():
    helped = q_hawkeye("doctor", "--help")
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", text_of(PAGE)))
    assert named - {"--nproc_per_node"} <= set(re.findall(r"--[a-z][\w-]+", helped)), named  # torchrun's


def test_the_snippet_writes_the_sections_of_the_table(tmp_path):
    (snippet,) = fences(PAGE, "python")
    trainer = build_trainer(tmp_path)
    exec(compile(snippet, str(PAGE), "exec"), {"trainer": trainer, "held_out": tiny_dataset(2, seed=1)})
    trainer.train()
    (facts,) = read_launches(tmp_path / FACTS_FILE)
    named = {name for cell in cells(0) for name in re.findall(r"^`(\w+)`", cell) + re.findall(r", `(\w+)`", cell)}
    assert set(facts) <= named
    assert named - set(facts) == set()


@pytest.mark.parametrize("name", ["docs/doctor.md", "README.md"])
def test_the_versions_are_those_of_the_constraints(name):
    found = VERSIONS.search(text_of(ROOT / name))
    if name == "README.md" and found is None:
        pytest.skip("the README does not say it in these words")
    *packages, python = found.groups()
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for package, version in zip(("trl", "transformers", "torch", "accelerate"), packages, strict=True):
        assert f"\n{package}=={version}\n" in text
    assert f"on Python {python};" in text
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    required = parser["options"]["install_requires"].split()
    ranges = re.findall(r"`((?:trl|transformers)[<>=][^`]+)`", text_of(ROOT / name))
    assert ranges
    assert set(ranges) <= set(required)
