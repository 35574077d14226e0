"""The tests, options and figures that docs/scaling.md names exist, and its table is what the tests measured."""

import re
import runpy
import shlex
import subprocess
import sys

import pytest

import distributed_cases as cases
from test_distributed import LOSS_BOUND, WEIGHT_BOUND, WRAPPERS, optimizer_of
from test_docs import ROOT, commands, text_of

PAGE = ROOT / "docs" / "scaling.md"
SCRIPT = runpy.run_path(str(ROOT / "benchmarks" / "scaling.py"))
CELL = re.compile(r"(0|\de-\d\d) / (0|\de-\d\d)")


def measured_rows() -> dict[str, list[str]]:
    block = text_of(PAGE).split(SCRIPT["BEGIN"])[1].split(SCRIPT["END"])[0]
    rows = [line.strip("| ").split(" | ") for line in block.splitlines() if line.startswith("|")]
    return {name: cells for name, *cells in rows}


def test_the_table_has_every_backend_and_feature_within_its_bound():
    rows = measured_rows()
    assert rows["feature"] == list(cases.BACKENDS)
    assert rows["*wrapper, two ranks*"] == [f"`{WRAPPERS[backend]}`" for backend in cases.BACKENDS]
    assert [name for name in rows if name in cases.FEATURES] == list(cases.FEATURES)
    for feature in cases.FEATURES:
        assert len(rows[feature]) == len(cases.BACKENDS)
        for cell in rows[feature]:
            loss, weight = map(float, CELL.fullmatch(cell).groups())
            assert loss < LOSS_BOUND
            assert weight < WEIGHT_BOUND[optimizer_of(feature)]


def test_the_table_is_written_from_the_results(tmp_path, monkeypatch, capsys):
    page, results = tmp_path / "page.md", tmp_path / "results.json"
    page.write_text(f"before\n{SCRIPT['BEGIN']}\nold\n{SCRIPT['END']}\nafter\n")
    results.write_text(
        '{"DDP": {"a group across ranks": {"loss": 0.0, "weight": 1.2e-7, "between_ranks": 0.0, "wrapper": "W", '
        '"collectives": 98}}}'
    )
    monkeypatch.setattr(sys, "argv", ["scaling.py", str(results), "--page", str(page)])
    SCRIPT["main"]()
    text = page.read_text()
    assert text.startswith(f"before\n{SCRIPT['BEGIN']}\n| feature | DDP |\n")
    assert text.endswith(f"{SCRIPT['END']}\nafter\n")
    assert "| a group across ranks | 0 / 1e-07 |" in text
    assert "| *collectives, a group across ranks* | 98 |" in text
    assert "old" not in text
    page.write_text("a page without marks")
    with pytest.raises(SystemExit):
        SCRIPT["main"]()
    assert "lacks the marks" in capsys.readouterr().err
    assert page.read_text() == "a page without marks"


def test_the_tests_that_it_names_are_there():
    named = [shlex.split(command) for command in commands(PAGE) if "-m pytest" in command]
    targets = {word for words in named for word in words if word.startswith("tests/")}
    assert len(targets) >= 6
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", *sorted(targets)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for target in targets:
        assert target in done.stdout


def test_options_of_the_launchers_exist():
    for module, words in (
        ("torch.distributed.run", "nnodes nproc_per_node rdzv_id rdzv_backend rdzv_endpoint"),
        ("accelerate.commands.launch", "cpu num_processes num_machines machine_rank"),
    ):
        help_of = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, timeout=120)
        known = set(re.findall(r"--[a-z_-]+", help_of.stdout))
        for word in words.split():
            assert f"--{word}" in text_of(PAGE)
            assert {f"--{word}", f"--{word.replace('_', '-')}"} & known, f"{module} has no --{word}"
