"""The imports of the package point one way, downwards in `ALLOWED`."""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "q_hawkeye_trl"
SOURCE = Path(__file__).parents[1] / "src" / PACKAGE

# A row is a module, or a subpackage with all its modules (which may import one another). A row may import those rows
# that it names, which lie below it, and no others. A new module at the top level needs a row.
ALLOWED: dict[str, set[str]] = {
    "__main__": {"cli"},
    "cli": {
        "__init__",
        "data",
        "demo",
        "doctor",
        "evaluation",
        "io",
        "pairs",
        "question",
        "report",
        "run_facts",
        "scoring",
        "text",
        "train",
    },
    "doctor": {"data", "demo", "io", "run_facts", "shared_prefix", "text", "train", "trl_compat"},
    "train": {
        "checkpointing",
        "config",
        "data",
        "demo",
        "errors",
        "evaluation",
        "io",
        "process_exit",
        "report",
        "rewards",
        "run_facts",
        "text",
        "trainer",
        "wording",
    },
    "__init__": {"trainer", "config", "text", "rewards", "scoring"},
    "report": {"data", "evaluation", "io", "scoring", "wording"},
    "trainer": {"checkpointing", "guards", "hawkeye_method", "shared_prefix"},
    "hawkeye_method": {
        "checks",
        "config",
        "data",
        "degraded_batch",
        "evaluation",
        "guards",
        "objective",
        "question",
        "rewards",
        "text",
        "trl_compat",
    },
    "checkpointing": {"errors", "io", "trl_compat"},
    "guards": {"checks", "errors", "trl_compat"},
    "checks": {"config", "objective"},
    "shared_prefix": {"data", "generation", "trl_compat"},
    "config": {"data", "question"},
    "degraded_batch": {"data"},
    "rewards": {"objective", "question", "text"},
    "run_facts": {"io"},
    "demo": {"data", "evaluation", "io", "text"},
    "scoring": {"data", "evaluation", "generation", "io", "question", "text", "wording"},
    "pairs": {"data", "io", "wording"},
    "evaluation": {"data", "generation", "text"},
    "generation": {"data"},
    "data": {"io", "text", "wording"},
    "objective": set(),
    "question": {"io", "text"},
    "text": set(),
    "wording": set(),
    "io": set(),
    # modules that import nothing of ours
    "errors": set(),
    "process_exit": set(),
    "memory": set(),
    "trl_compat": set(),
}

# Modules that must stay usable and testable without the rest of the ecosystem, and the packages that they may import.
THIRD_PARTY: dict[str, set[str]] = {"text": set(), "objective": {"torch"}}


def name_of(path: Path) -> str:
    """`data/koniq.py` is "data.koniq", `data/__init__.py` is "data", the package itself is "__init__"."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(SOURCE.rglob("*.py"))}


def row_of(module: str) -> str:
    return module.split(".")[0]


def own_module(dotted: str) -> str:
    """The longest prefix of `dotted`, without the package's name, that is a module of ours."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in MODULES:
            return ".".join(parts[:end])
    return "__init__"


def imports_of(module: str, source: str, is_package: bool) -> tuple[set[str], set[str]]:
    """The modules of ours and the other top-level packages that a source imports, anywhere in it."""
    own, other = set(), set()
    here = [PACKAGE, *(() if module == "__init__" else module.split("."))]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = here[: len(here) - node.level + is_package]
                base = ".".join([*parents, *filter(None, [node.module])])
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            top, _, rest = target.partition(".")
            if top == PACKAGE:
                own.add(own_module(rest))
            else:
                other.add(top)
    return own, other - set(sys.stdlib_module_names)


IMPORTS = {
    name: imports_of(name, path.read_text(encoding="utf-8"), is_package=path.name == "__init__.py")
    for name, path in MODULES.items()
}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_row_allows(module):
    row = row_of(module)
    assert row in ALLOWED, f"{module} has no row in ALLOWED of tests/test_imports.py: add one at its height"
    forbidden = {target for target in IMPORTS[module][0] if row_of(target) not in ALLOWED[row] | {row}}
    assert not forbidden, f"{module} imports {sorted(forbidden)}; its row allows {sorted(ALLOWED[row])}"


@pytest.mark.parametrize("row", THIRD_PARTY)
def test_pure_modules_import_no_further_package(row):
    for module in MODULES:
        if row_of(module) == row:
            further = IMPORTS[module][1] - THIRD_PARTY[row]
            assert not further, f"{module} imports {sorted(further)}; {row} may import {sorted(THIRD_PARTY[row])}"


def test_every_row_is_a_module_and_points_downwards():
    rows = list(ALLOWED)
    assert set(rows) <= {row_of(module) for module in MODULES}, "ALLOWED names modules that do not exist"
    for height, row in enumerate(rows):
        assert ALLOWED[row] <= set(rows[height + 1 :]), f"{row} may import rows above it"


def test_there_is_no_cycle():
    graph = {module: own - {module} for module, (own, _) in IMPORTS.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("source", "own", "other"),
    [
        ("from .scales import koniq_mos", {"data.scales"}, set()),
        ("from . import scales", {"data.scales"}, set()),
        ("from ..text import quality_messages", {"text"}, set()),
        ("from .. import text", {"text"}, set()),
        ("def f():\n    import q_hawkeye_trl.rewards as r", {"rewards"}, set()),
        ("from q_hawkeye_trl import HawkeyeGRPOTrainer", {"__init__"}, set()),
        ("from q_hawkeye_trl.objective import schedule", {"objective.schedule"}, set()),
        ("import os\nimport torch.nn as nn\nfrom trl.models import utils", set(), {"torch", "trl"}),
    ],
)
def test_the_reader_sees_every_form_of_import(source, own, other):
    assert imports_of("data.koniq", source, is_package=False) == (own, other)


def test_the_reader_resolves_imports_of_a_subpackages_init():
    assert imports_of("data", "from .scales import koniq_mos\nfrom ..text import parse_score", is_package=True)[0] == {
        "data.scales",
        "text",
    }
