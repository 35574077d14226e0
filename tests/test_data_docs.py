"""docs/data.md: its commands run on small sets in the official layouts, its tables name what there is."""

import functools
import re
import shlex
from pathlib import Path

import pytest

from iqa_layouts import write_images, write_metas, write_rows
from iqa_sets import SETS, run_cli
from q_hawkeye_trl.data.faults import FAULTS
from q_hawkeye_trl.data.preparation import FEATURES
from q_hawkeye_trl.data.readers import READERS
from q_hawkeye_trl.data.scales import KONIQ_SCALES, SCALES

PAGE = Path(__file__).parents[1] / "docs" / "data.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.fixture
def cli(monkeypatch, capsys):
    return functools.partial(run_cli, monkeypatch, capsys)


def _commands():
    blocks = re.findall(r"^```bash\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("q-hawkeye ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with every set that the page names; images of different sets differ."""
    base = tmp_path_factory.mktemp("docs")
    for name, (build, _, _) in SETS.items():
        if name not in ("deqa", "table"):
            build(base / "data" / name)
    kadid = base / "data" / "kadid10k" / "images"
    write_images(kadid, sorted(path.name for path in kadid.iterdir()), first=3000)
    SETS["spaq"][0](base / "data" / "spaq-incomplete")
    for name in ("00002.jpg", "00005.jpg"):
        (base / "data" / "spaq-incomplete" / "TestImage" / name).unlink()
    rows = [{"image": f"KONIQ/images/{n}.jpg", "gt_score": 2.0 + n, "gt_score_norm": 1.5 + n} for n in range(3)]
    write_metas(base / "data" / "KONIQ" / "metas" / "train_koniq_7k.json", rows[:2])
    write_metas(base / "data" / "KONIQ" / "metas" / "test_koniq_2k.json", rows[2:])
    write_images(base / "data", [row["image"] for row in rows])
    write_rows(base / "data" / "mine" / "scores.csv", ["file", "score"], [(f"{n}.png", n * 10) for n in range(9)])
    write_images(base / "data" / "mine", [f"{n}.png" for n in range(9)])
    return base


def test_every_command_of_the_page_runs(folder, monkeypatch, cli):
    monkeypatch.chdir(folder)
    commands = _commands()
    for words in commands:
        status, _, error = cli(*words)
        assert status == 0, f"{' '.join(words)}\n{error}"
        assert (folder / words[words.index("--out") + 1] / "README.md").is_file()
    assert {words[1] for words in commands} == {*READERS, "mix"}
    for block in re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), {})


def test_every_option_of_the_page_exists(cli):
    helps = "".join(cli("prepare", name, "--help")[1] for name in (*READERS, "mix"))
    for option in set(re.findall(r"`(--[a-z-]+)", TEXT)):
        assert option in helps, option


def test_tables_name_all_sets_faults_columns_and_scales():
    cells = {code for line in TEXT.splitlines() if line.startswith("|") for code in re.findall(r"`([^`]+)`", line)}
    assert set(READERS) <= cells
    assert {f"--allow-{kind} N" for kind in FAULTS} <= cells | {"--allow-outside N"}
    assert set(FEATURES) <= cells
    assert {*SCALES, *KONIQ_SCALES} <= cells
