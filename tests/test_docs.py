"""The documents: commands and snippets run or parse, names exist, tables match the code, options are described."""

import configparser
import dataclasses
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from trl import GRPOConfig

import distributed_cases as cases
from docs_commands import (
    COMMANDS,
    OPTION,
    check_command,
    is_command,
    is_training,
    options_of_ablation,
    options_of_training,
    run_small,
    runs_here,
)
from docs_sandbox import ROOT, build_sandbox
from harness import build_trainer
from q_hawkeye_trl import HawkeyeGRPOConfig
from q_hawkeye_trl.checkpointing.checkpoint_files import MANIFEST
from q_hawkeye_trl.checkpointing.run_state import ROLLOUTS_FILE, STATE_FILE
from q_hawkeye_trl.checkpointing.staging import STAGING
from q_hawkeye_trl.data.degradations import SEVERITIES, SPATIAL_SEVERITIES
from q_hawkeye_trl.data.preparation import FEATURES
from q_hawkeye_trl.data.readers import READERS
from q_hawkeye_trl.data.scales import KONIQ_SCALES, SCALES
from q_hawkeye_trl.evaluation.public_sets import PRESETS
from q_hawkeye_trl.memory import GIB, MODELS, estimate, setup_of
from q_hawkeye_trl.pairs.pair_manifest import SCHEMA, VERDICTS
from q_hawkeye_trl.run_facts.launches import FACTS_FILE, read_launches
from q_hawkeye_trl.train.arguments import ScriptArguments
from recipe_files import ACCELERATE, FOLDER, LAUNCHERS, TRAINING, resolved
from test_cli_score import FIELDS
from test_distributed import LOSS_BOUND, WEIGHT_BOUND, optimizer_of
from tiny_models import tiny_dataset

DOCUMENTS = {path.name: path for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in DOCUMENTS.items()}
ALL_TEXT = "\n".join(TEXTS.values())
every_document = pytest.mark.parametrize("name", sorted(DOCUMENTS))

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)|<img[^>]*\bsrc=\"([^\"]+)\"")
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
NAMED_TEST = re.compile(r"\b(?:(tests/\w+\.py)::)?(test_\w+)\b(?![./*])")

# Code in backticks is a path of the repository if it begins with one of its folders or ends like one of its files.
FOLDERS = (".ci", "benchmarks", "docs", "examples", "recipes", "src", "tests")
SUFFIXES = (".py", ".md", ".yaml", ".yml", ".toml", ".cfg", ".cff")
FILES = ("Makefile", "LICENSE", "constraints.txt")
# What a run writes, and files of other projects.
ELSEWHERE = ("runs/", "trl/", "transformers/", "torch/", "http://", "https://", "~", "/", "PATH", "$")


def fences(name: str, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(TEXTS[name]) if language in languages]


def inline_code(name: str) -> list[str]:
    """Code in backticks outside of blocks, without links to other sites, which name things there."""
    return INLINE.findall(re.sub(r"\[[^\]]*\]\(https?://[^)]*\)", "", FENCE.sub("", TEXTS[name])))


def commands_of(block: str) -> list[str]:
    return [line for line in block.replace("\\\n", " ").splitlines() if shlex.split(line, comments=True)]


def bash_commands(name: str) -> list[str]:
    return [command for block in fences(name, "bash", "sh", "shell") for command in commands_of(block)]


# Names


@every_document
def test_paths_exist(name):
    bases = (ROOT, DOCUMENTS[name].parent, ROOT / "src" / "q_hawkeye_trl", ROOT / "tests")
    missing = []
    for code in inline_code(name):
        path = re.sub(r"(::|#|:\d).*$", "", code)
        if " " in path or path.startswith(ELSEWHERE) or re.search(r"[<>{}=\"'(]|\.\.\.", path):
            continue
        is_path = path.split("/")[0] in FOLDERS or path.endswith(SUFFIXES) or path in FILES
        if is_path and not any(any(base.glob(path.rstrip("/"))) for base in bases):
            missing.append(path)
    assert not missing


@every_document
def test_links_lead_somewhere(name):
    links = [(link or image).split("#")[0] for link, image in LINK.findall(FENCE.sub("", TEXTS[name]))]
    folder = DOCUMENTS[name].parent
    assert not [link for link in links if link and not re.match(r"[a-z]+:", link) and not (folder / link).exists()]


@every_document
def test_trees_name_existing_files(name):
    """Blocks without a language are trees: one name per line, two spaces deeper than its folder, then what it is."""
    missing = []
    for tree in fences(name, ""):
        parents: list[str] = []
        for indent, entry in re.findall(r"^( *)([\w./-]+)(?:\s{2,}.*)?$", tree, re.MULTILINE):
            parents = [*parents[: len(indent) // 2], entry]
            if not entry.startswith("runs") and not ROOT.joinpath(*parents).exists():
                missing.append("/".join(parents))
    assert not missing


@pytest.mark.parametrize(("file", "test"), sorted(set(NAMED_TEST.findall(ALL_TEXT))))
def test_named_tests_exist(file, test):
    files = [ROOT / file] if file else (ROOT / "tests").glob("test_*.py")
    assert any(f"def {test}(" in path.read_text(encoding="utf-8") for path in files)


def test_version_ranges_are_those_of_the_package():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    required = parser["options"]["install_requires"].split()
    assert set(re.findall(r"`((?:trl|transformers)[<>=][^`]+)`", ALL_TEXT)) <= set(required)
    pinned = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE))
    tested = {row[0].lower(): row[2] for row in table_rows(TEXTS["doctor.md"].split("## Versions")[1])}
    packages = ("trl", "transformers", "torch", "accelerate")
    assert {name: tested[name] for name in packages} == {name: pinned[name] for name in packages}


# Commands and snippets


@every_document
def test_commands_are_known(name):
    for command in bash_commands(name) + [code for code in inline_code(name) if is_command(code)]:
        try:
            check_command(shlex.split(command, comments=True))
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{name}: {command}") from error


def run_page(name: str, folder: Path, monkeypatch, *, trainings: bool) -> None:
    """Run the commands and snippets of a page in their order."""
    build_sandbox(name, folder)
    monkeypatch.chdir(folder)
    names: dict = {}
    for language, block in FENCE.findall(TEXTS[name]):
        if language == "python":
            run_snippet(name, block, names, folder / "given")
        for command in commands_of(block) if language == "bash" else []:
            words = shlex.split(command, comments=True)
            if runs_here(command) and (trainings or not is_training(words)):
                try:
                    run_small(words)
                except Exception as error:
                    raise AssertionError(f"{name}: {command}") from error


def run_snippet(name: str, snippet: str, names: dict, given: Path) -> None:
    """Execute a snippet; one that adds to the reader's trainer gets a trainer with a checkpoint."""
    if "trainer" in snippet and "trainer =" not in snippet and "trainer" not in names:
        options = {"save_strategy": "steps", "save_steps": 1}
        build_trainer(given, **options).train()
        names |= {"trainer": build_trainer(given, **options, max_steps=2), "held_out": tiny_dataset(2, seed=1)}
    if "use_cpu" not in snippet:
        snippet = snippet.replace("HawkeyeGRPOConfig(", "HawkeyeGRPOConfig(bf16=False, use_cpu=True,")
    exec(compile(snippet, name, "exec"), names)


def pages(*, trainings: bool) -> list[str]:
    """Pages with trainings that run here, or with anything else that does."""
    found = []
    for name in sorted(DOCUMENTS):
        here = [is_training(shlex.split(line, comments=True)) for line in bash_commands(name) if runs_here(line)]
        if trainings in here or (not trainings and fences(name, "python")):
            found.append(name)
    return found


@pytest.mark.parametrize("name", pages(trainings=False))
def test_page_runs(name, tmp_path, monkeypatch):
    run_page(name, tmp_path, monkeypatch, trainings=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", pages(trainings=True))
def test_page_runs_with_its_trainings(name, tmp_path, monkeypatch):
    run_page(name, tmp_path, monkeypatch, trainings=True)


@every_document
def test_yaml_blocks_are_recipes(name):
    for block in fences(name, "yaml"):
        assert {f"--{key}" for key in yaml.safe_load(block)} - {"--env", "--base"} <= options_of_training()


# Everything is described


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_and_option_is_described(path):
    assert path in ALL_TEXT
    options = {parameter.opts[0] for parameter in COMMANDS[path].params if parameter.opts[0].startswith("--")}
    options |= options_of_ablation() if path == "q-hawkeye ablate" else set()
    assert sorted(options - set(OPTION.findall(ALL_TEXT))) == []


@pytest.mark.parametrize("arguments", [HawkeyeGRPOConfig, ScriptArguments])
def test_every_field_is_described(arguments):
    fields, stock = ({field.name for field in dataclasses.fields(each)} for each in (arguments, GRPOConfig))
    assert sorted(field for field in fields - stock if not re.search(rf"\b{field}\b", ALL_TEXT)) == []


DESCRIBED = {
    "data.md": {*READERS, *FEATURES, *SCALES, *KONIQ_SCALES},
    "pairs.md": {*SCHEMA.names, *VERDICTS, *SEVERITIES, *SPATIAL_SEVERITIES},
    "scoring.md": FIELDS,
    "evaluation.md": {*PRESETS},
    "resume.md": {STATE_FILE.format("RANK"), ROLLOUTS_FILE.format("RANK"), MANIFEST, STAGING},
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_names_of_the_code_are_described(name):
    assert sorted(DESCRIBED[name] - set(INLINE.findall(TEXTS[name]))) == []


def test_every_recipe_is_described():
    named = set(re.findall(r"`(?:recipes/)?([\w./]+)`", TEXTS["recipes.md"])) | set(TEXTS["recipes.md"].split())
    names = {path: path.relative_to(FOLDER).as_posix() for path in (*TRAINING, *ACCELERATE, *LAUNCHERS)}
    spelled = {path: {name, f"recipes/{name}", name.removesuffix(".yaml"), path.stem} for path, name in names.items()}
    assert [names[path] for path in names if not spelled[path] & named] == []


def test_doctor_areas_and_facts_are_described(tmp_path):
    from q_hawkeye_trl.doctor import Plan
    from q_hawkeye_trl.doctor.examination import examine
    from q_hawkeye_trl.run_facts.launches import RunFactsCallback

    cells = {
        area
        for line in TEXTS["doctor.md"].splitlines()
        if line.startswith("|")
        for area in line.strip("| ").split(" | ")[0].split(", ")
    }
    assert sorted({finding.area for finding in examine(Plan()).findings} - cells) == []
    trainer = build_trainer(tmp_path)
    trainer.add_callback(RunFactsCallback(trainer, held_out=tiny_dataset(2, seed=1)))
    trainer.train()
    (facts,) = read_launches(tmp_path / FACTS_FILE)
    assert sorted({f"`{name}`" for name in facts} - cells) == []


# Tables of numbers


def table_rows(text: str) -> list[list[str]]:
    """Cells of the tables in a text, without the lines below their heads."""
    lines = [line.strip("| ").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines if set("".join(line)) - set("-: ")]


def test_the_strengths_of_degradations():
    rows = {row[0].strip("`"): row[-5:] for row in table_rows(TEXTS["pairs.md"])}
    for kind, (_, values) in SEVERITIES.items():
        assert [float(cell) for cell in rows[kind]] == list(values), kind
    for kind, (_, neutral, shares) in SPATIAL_SEVERITIES.items():
        cells = [re.fullmatch(r"([\d.]+) \+ ([\d.]+) s", cell).groups() for cell in rows[kind]]
        assert [(float(a), float(b)) for a, b in cells] == [(float(neutral), share) for share in shares], kind


def test_the_memory_of_the_release():
    table = TEXTS["recipes.md"].split("in GiB a GPU")[-1]
    (_, *heads), *rows = [row for row in table_rows(table) if len(row) == 1 + 2 * len(MODELS)]
    columns = [re.fullmatch(r"(\S+), (\d) GPUs", head).groups() for head in heads]
    models = {name.split("/")[1].removesuffix("-Instruct"): shape for name, shape in MODELS.items()}
    release = resolved(FOLDER / "koniq" / "qwen2_5_vl_7b.yaml")
    for name, *cells in rows:
        config = yaml.safe_load((FOLDER / "accelerate" / f"{name}.yaml").read_text())
        for (model, devices), cell in zip(columns, cells, strict=True):
            needed = estimate(models[model], setup_of(release, config | {"num_processes": int(devices)}))
            assert f"{needed.total / GIB:.1f}" == cell, (name, model, devices)


SCALING = runpy.run_path(str(ROOT / "benchmarks" / "scaling.py"))


def test_the_differences_between_backends():
    block = TEXTS["scaling.md"].split(SCALING["BEGIN"])[1].split(SCALING["END"])[0]
    (_, *heads), *rows = table_rows(block)
    assert heads == list(cases.BACKENDS)
    measured = {name: cells for name, *cells in rows if name in cases.FEATURES}
    assert list(measured) == list(cases.FEATURES)
    for feature, cells in measured.items():
        for cell in cells:
            loss, weight = map(float, re.fullmatch(r"(0|\de-\d\d) / (0|\de-\d\d)", cell).groups())
            assert loss < LOSS_BOUND
            assert weight < WEIGHT_BOUND[optimizer_of(feature)]


def test_scaling_writes_its_table(tmp_path, monkeypatch, capsys):
    page, results = tmp_path / "page.md", tmp_path / "results.json"
    page.write_text(f"before\n{SCALING['BEGIN']}\nold\n{SCALING['END']}\nafter\n")
    result = {"loss": 0.0, "weight": 1.2e-7, "between_ranks": 0.0, "wrapper": "W", "collectives": 98}
    results.write_text(json.dumps({"DDP": {"a group across ranks": result}}))
    monkeypatch.setattr(sys, "argv", ["scaling.py", str(results), "--page", str(page)])
    SCALING["main"]()
    text = page.read_text()
    assert text.startswith(f"before\n{SCALING['BEGIN']}\n| feature | DDP |\n")
    assert text.endswith(f"{SCALING['END']}\nafter\n")
    assert "| a group across ranks | 0 / 1e-07 |" in text
    assert "| *collectives, a group across ranks* | 98 |" in text
    assert "old" not in text
    page.write_text("a page without marks")
    with pytest.raises(SystemExit):
        SCALING["main"]()
    assert page.read_text() == "a page without marks"
