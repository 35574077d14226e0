"""What the documents say exists: paths, make targets, options, config fields, code that compiles."""

import dataclasses
import functools
import importlib
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import pytest
from trl import GRPOConfig

import q_hawkeye_trl.objective
from q_hawkeye_trl import HawkeyeGRPOConfig

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)")
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
IMAGE_TAG = re.compile(r"<img[^>]*\bsrc=\"([^\"]+)\"")

# A word in backticks is a path of the repository when it begins with one of its folders or ends like one of its files.
FOLDERS = (".ci", "benchmarks", "docs", "examples", "recipes", "src", "tests")
SUFFIXES = (".py", ".md", ".yaml", ".yml", ".toml", ".cfg", ".cff")
FILES = ("Makefile", "LICENSE", "constraints.txt")
# What a training writes, and files of other projects.
ELSEWHERE = ("runs/", "trl/", "transformers/", "torch/", "http://", "https://", "~", "/", "PATH", "$")


def text_of(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def fences(document: Path, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(text_of(document)) if language in languages]


def prose(document: Path) -> str:
    return FENCE.sub("", text_of(document))


def inline_code(text: str) -> list[str]:
    """Words in backticks, without those that link to another site: these name things there."""
    return INLINE.findall(re.sub(r"\[[^\]]*\]\(https?://[^)]*\)", "", text))


def commands(document: Path) -> list[str]:
    """Shell commands: lines of bash blocks, continuations joined, and code in backticks."""
    blocks = "\n".join(fences(document, "bash", "sh", "shell"))
    return blocks.replace("\\\n", " ").splitlines() + inline_code(prose(document))


def exists_in_repository(name: str, document: Path) -> bool:
    """Whether a path, or a pattern of paths, exists from the root, the document's folder or the package's."""
    bases = (ROOT, document.parent, ROOT / "src" / "q_hawkeye_trl", ROOT / "tests")
    return any(any(base.glob(name.rstrip("/"))) for base in bases)


@every_document
def test_paths_exist(document):
    missing = []
    for code in inline_code(prose(document)):
        name = re.sub(r"(::|#|:\d).*$", "", code)
        if " " in name or name.startswith(ELSEWHERE) or re.search(r"[<>{}=\"'(]|\.\.\.", name):
            continue
        is_path = name.split("/")[0] in FOLDERS or name.endswith(SUFFIXES) or name in FILES
        if is_path and not exists_in_repository(name, document):
            missing.append(name)
    assert not missing, f"{document.name} names {missing}"


@every_document
def test_links_lead_somewhere(document):
    text = prose(document)
    targets = [target.split("#")[0] for target in LINK.findall(text) + IMAGE_TAG.findall(text)]
    missing = [t for t in targets if t and not re.match(r"[a-z]+:", t) and not (document.parent / t).exists()]
    assert not missing, f"{document.name} links to {missing}"


@every_document
def test_trees_name_what_exists(document):
    """Blocks without a language are trees: a name a line, two spaces deeper than its folder, then what it is."""
    for tree in fences(document, ""):
        parents: list[str] = []
        for indent, name in re.findall(r"^( *)([\w./-]+)(?:\s{2,}.*)?$", tree, re.MULTILINE):
            parents = [*parents[: len(indent) // 2], name]
            path = ROOT.joinpath(*parents)
            assert name.startswith("runs") or path.exists(), f"{document.name}: no {path.relative_to(ROOT)}"


@every_document
def test_make_targets_exist(document):
    targets = set(re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    for command in commands(document):
        for arguments in re.findall(r"(?:^|[;&]\s*)make\s+([^;&#]+)", command):
            named = [word for word in shlex.split(arguments) if re.fullmatch(r"[a-z][a-z-]*", word)]
            assert set(named) <= targets, f"{document.name}: `{command}`"


@functools.cache
def options_of(script: str) -> set[str]:
    """The options that a script's own `--help` lists."""
    environment = {**os.environ, "COLUMNS": "200"}
    process = subprocess.run(
        [sys.executable, script, "--help"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr[-3000:]
    options = set(re.findall(r"(?<![\w-])--[A-Za-z][\w-]*", process.stdout))
    if "TrlParser" in text_of(ROOT / script):
        options.add("--config")  # TrlParser takes it before argparse sees it
    return options


def script_calls(document: Path) -> list[tuple[str, list[str]]]:
    """Each call of a script in examples/ with its words; `make train ARGS="…"` is one of train_koniq.py."""
    calls = []
    for command in commands(document):
        words = shlex.split(command, comments=True) if command.count('"') % 2 == command.count("'") % 2 == 0 else []
        for position, word in enumerate(words):
            if re.fullmatch(r"examples/\w+\.py", word):
                calls.append((word, words[position + 1 :]))
            if word.startswith("ARGS=") and "train" in words:
                calls.append(("examples/train_koniq.py", word.removeprefix("ARGS=").split()))
    return calls


@every_document
def test_options_of_scripts_are_accepted(document):
    for script, words in script_calls(document):
        assert (ROOT / script).is_file(), f"{document.name} calls {script}"
        for word, value in zip_longest(words, words[1:], fillvalue=""):
            if word.startswith("--"):
                assert word.split("=")[0] in options_of(script), f"{document.name}: {script} has no {word}"
            if word == "--config":
                assert (ROOT / value).is_file(), f"{document.name} names {value}"


def test_the_readme_calls_a_script():
    assert script_calls(ROOT / "README.md")


def test_config_fields_in_tables_exist():
    fields = {field.name for field in dataclasses.fields(HawkeyeGRPOConfig)}
    ours = fields - {field.name for field in dataclasses.fields(GRPOConfig)}
    prefixes = tuple(sorted({f"{name.split('_')[0]}_" for name in ours}))
    # tables also name the functions that hold a formula
    functions = {
        name
        for module in pkgutil.iter_modules(q_hawkeye_trl.objective.__path__, "q_hawkeye_trl.objective.")
        for name in vars(importlib.import_module(module.name))
    }
    rows = [line for line in text_of(ROOT / "docs" / "method.md").splitlines() if line.lstrip().startswith("|")]
    named = {code.split("=")[0].strip() for row in rows for code in INLINE.findall(row) if code.startswith(prefixes)}
    named = {name for name in named if re.fullmatch(r"[a-z_]+", name)}
    assert named & ours, "docs/method.md names no field of HawkeyeGRPOConfig in a table"
    assert named <= fields | functions, f"docs/method.md names {sorted(named - fields - functions)}"


@every_document
def test_python_blocks_compile(document):
    for number, block in enumerate(fences(document, "python"), 1):
        compile(block, f"{document.name}, python block {number}", "exec")


def test_the_readme_has_a_snippet():
    assert fences(ROOT / "README.md", "python")
