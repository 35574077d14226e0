"""`q-hawkeye prepare` as a user types it."""

import functools
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_from_disk

from iqa_sets import SETS, run_cli

ROOT = Path(__file__).parents[1]


@pytest.fixture
def cli(monkeypatch, capsys):
    return functools.partial(run_cli, monkeypatch, capsys)


@pytest.fixture
def prepared(tmp_path, cli):
    """Builds a set of `SETS` and prepares it by the command line."""

    def prepare(name, *options):
        if not (tmp_path / name).exists():
            SETS[name][0](tmp_path / name)
        words = ["--root", tmp_path / name, "--out", tmp_path / "p" / name, *options]
        status, out, error = cli("prepare", name, *words)
        assert status == 0, error
        return load_from_disk(tmp_path / "p" / name), out

    return prepare


@pytest.mark.parametrize("name", SETS)
def test_every_set_is_prepared_by_one_command(name, prepared):
    _, options, count = SETS[name]
    data, out = prepared(name, *options)
    assert sum(map(len, data.values())) == count
    assert {"deqa": "x", "table": "mine"}.get(name, name) in set(data["train"]["dataset"][:])
    for row in (row for split in data.values() for row in split):
        assert 1 <= row["mos"] <= 5
        assert row["image"].size[0] > 0
    assert "README.md" in out
    assert f"{len(data['train'])}" in out
    assert "exists already" in prepared(name, *options)[1]


def test_options_reach_the_library(tmp_path, prepared):
    assert set(prepared("koniq10k", "--scale", "raw")[0]["train"]["mos_scale"]) == {"raw"}
    words = ["--target", "alignment", "--embed", "--seed", 4, "--shares", "0.5,0,0.5"]
    assert list(prepared("agiqa3k", *words)[0]) == ["train", "test"]
    record = json.loads((tmp_path / "p" / "agiqa3k" / "prepare.json").read_text())["request"]
    assert (record["dataset"], record["seed"], record["embed"]) == ("agiqa3k-alignment", 4, True)
    assert sum(map(len, prepared("livec", "--keep-training-images")[0].values())) == 12


def test_bad_input_ends_in_its_message_and_status_1(tmp_path, cli):
    SETS["spaq"][0](tmp_path / "s")
    (tmp_path / "s" / "TestImage" / "00003.jpg").unlink()
    words = ["prepare", "spaq", "--root", tmp_path / "s", "--out", tmp_path / "out"]
    status, _, error = cli(*words)
    assert status == 1
    assert "00003.jpg" in error
    assert "--allow-missing 1" in error
    assert cli(*words, "--allow-missing", 1)[0] == 0
    for more, message in (
        (["--shares", "a,b"], "--shares: expected three numbers"),
        (["--scale", "raw"], "Unknown scale 'raw'"),
        (["--root", tmp_path / "nowhere"], "nowhere"),
    ):
        status, _, error = cli(*words[:-1], tmp_path / "other", *more)
        assert status == 1
        assert message in error
    assert cli("prepare", "imagenet", "--root", tmp_path, "--out", tmp_path / "x")[0] == 2


def test_an_interruption_says_how_to_resume(tmp_path, cli, monkeypatch):
    SETS["spaq"][0](tmp_path / "s")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("q_hawkeye_trl.data.preparation.check_faults", stop)
    words = ["prepare", "spaq", "--root", tmp_path / "s", "--out", tmp_path / "out"]
    status, _, error = cli(*words)
    assert status != 0
    assert f"{tmp_path / 'out'}.partial" in error
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    monkeypatch.setattr("q_hawkeye_trl.data.inspection.load_image", stop)  # nothing is opened a second time
    assert cli(*words)[0] == 0


def test_help_answers_without_the_heavy_packages():
    code = (
        "import sys; sys.argv = ['q-hawkeye', 'prepare', '--help']\n"
        "from q_hawkeye_trl.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'scipy', 'PIL') if name in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert process.stdout.strip().endswith("[]"), process.stdout[-300:] + process.stderr[-300:]


@pytest.mark.slow
def test_the_training_script_takes_a_prepared_mix(tmp_path, cli, prepared, monkeypatch):
    """Two sets, one of them without spreads, in two steps of training."""
    parts = [prepared(name)[0]["train"] for name in ("koniq10k", "spaq")]
    status, out, error = cli("prepare", "mix", tmp_path / "p/koniq10k", tmp_path / "p/spaq", "--out", tmp_path / "mix")
    assert status == 0, error
    assert len(load_from_disk(tmp_path / "mix")["train"]) == sum(map(len, parts))
    assert "README.md" in out
    script = ROOT / "examples" / "train_koniq.py"
    words = ["--dataset", tmp_path / "mix", "--output_dir", tmp_path / "run", "--max_steps", 2, "--bf16", "false"]
    words += ["--per_device_train_batch_size", 8, "--num_generations", 4, "--use_cpu", "true", "--held_out_images", 4]
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, words)])
    runpy.run_path(str(script), run_name="__main__")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["held_out_images"] == 4
