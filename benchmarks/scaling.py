"""
Writes the table of docs/scaling.md from the figures that the distributed tests measured.

    SCALING_RESULTS=runs/scaling.json python -m pytest -m slow tests/test_distributed.py
    python benchmarks/scaling.py runs/scaling.json

The first command trains every feature under every backend and fails where a figure is beyond its bound; a part of it
(`-k ZeRO-2`) renews the figures of that part.
"""

import argparse
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

from q_hawkeye_trl.io.atomic import write_text

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
PACKAGES = ("torch", "transformers", "trl", "accelerate", "deepspeed", "peft")


def machine() -> str:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    processor = (names or [platform.machine()])[0]
    return f"{os.cpu_count()} cores of {processor}, Python {platform.python_version()}, {packages}"


def table(measured: dict[str, dict[str, dict]]) -> str:
    """
    Builds the Markdown between the marks of the page.

    Args:
        measured (`dict`):
            By backend and feature what the tests wrote: `loss`, `weight` and `between_ranks` (largest absolute
            differences), `wrapper`, `collectives`.

    Returns:
        `str`
    """
    backends, features = list(measured), list(next(iter(measured.values())))
    first = {backend: next(iter(measured[backend].values())) for backend in backends}
    rows = [["feature", *backends], ["---"] * (len(backends) + 1)]
    rows.append(["*wrapper, two ranks*", *(f"`{first[backend]['wrapper']}`" for backend in backends)])
    for feature in features:
        cells = [measured[backend][feature] for backend in backends]
        rows.append([feature, *(f"{_short(cell['loss'])} / {_short(cell['weight'])}" for cell in cells)])
    plain = "a group across ranks"
    rows.append([f"*collectives, {plain}*", *(str(measured[backend][plain]["collectives"]) for backend in backends)])
    between = max(cell["between_ranks"] for figures in measured.values() for cell in figures.values())
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    ends = [f"Largest difference between the weights of the two ranks: {between:g}.", f"Measured on {machine()}."]
    return "\n".join([*lines, "", *ends])


def _short(value: float) -> str:
    return f"{value:.0e}" if value else "0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="file that the tests wrote")
    parser.add_argument("--page", type=Path, default=PAGE, help="page whose table is written")
    arguments = parser.parse_args()
    written = table(json.loads(arguments.results.read_text()))
    before, begin, rest = arguments.page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        parser.error(f"{arguments.page} lacks the marks {BEGIN} and {END}, between which the table goes")
    write_text(arguments.page, f"{before}{BEGIN}\n{written}\n{END}{after}")
    print(written)


if __name__ == "__main__":
    main()
