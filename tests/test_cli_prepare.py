"""`q-hawkeye prepare` as a user types it."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_from_disk

from iqa_layouts import (
    csiq_image,
    livec_image,
    write_agiqa,
    write_csiq,
    write_flive,
    write_images,
    write_kadid,
    write_livec,
    write_metas,
    write_pipal,
    write_rows,
    write_spaq,
    write_tid,
)
from q_hawkeye_trl.cli import main
from q_hawkeye_trl.demo.synthetic import write_synthetic_koniq

ROOT = Path(__file__).parents[1]


@pytest.fixture
def cli(monkeypatch, capsys):
    """Runs a command; returns its exit status and what it printed on both streams."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["q-hawkeye", *map(str, words)])
        try:
            main()
            status = 0
        except SystemExit as stopped:
            status = stopped.code or 0
        streams = capsys.readouterr()
        return status, streams.out, streams.err

    return run


def _levels(pattern, references):
    return [pattern.format(r, level) for r in references for level in range(1, 6)]


def _koniq10k(root):
    write_synthetic_koniq(root, train=6, validation=2, test=3, progress=False)


def _spaq(root):
    names = [f"{n:05}.jpg" for n in range(1, 8)]
    write_spaq(root, [(name, 10.0 + n) for n, name in enumerate(names)])
    write_images(root / "TestImage", names)


def _kadid10k(root):
    names = _levels("{}_01_0{}.png", ["I01", "I02", "I03"])
    write_kadid(root, [(name, name[:3] + ".png", 4 - n / 9, 0.3) for n, name in enumerate(names)])
    write_images(root / "images", names)


def _pipal(root):
    names = _levels("{}_00_0{}.bmp", ["A0001", "A0002", "A0003"])
    write_pipal(root, [(name, 1400.0 + n) for n, name in enumerate(names)])
    write_images(root / "Train_Dist", names)


def _livec(root):
    names = [f"t{n}.bmp" for n in range(1, 8)] + [f"{n}.bmp" for n in range(3, 8)]
    write_livec(root, [(name, 40.0 + n, 19.0) for n, name in enumerate(names)])
    write_images(root / "Images", [livec_image(name) for name in names])


def _agiqa3k(root):
    names = [f"model{n % 2}_{n // 2:03}.jpg" for n in range(8)]
    write_agiqa(root, [(name, f"text {n // 2}", n / 3, 0.2, 3 - n / 3, 0.1) for n, name in enumerate(names)])
    write_images(root, names)


def _csiq(root):
    names = _levels("{}.AWGN.{}.png", ["1600", "lake", "log"])
    write_csiq(root, [(name, n / 20, 0.05) for n, name in enumerate(names)])
    write_images(root / "dst_imgs", [csiq_image(name) for name in names])


def _tid2013(root):
    names = _levels("{}_01_{}.bmp", ["I01", "i02", "I03"])
    write_tid(root, [(name, 6 - n / 4, 0.12) for n, name in enumerate(names)])
    write_images(root / "distorted_images", names)


def _flive(root):
    names = [f"{folder}/{n}.jpg" for folder in ("EE371R", "voc_emotic_ava") for n in range(4)]
    write_flive(root, [(name, 60.0 + n) for n, name in enumerate(names)])
    write_images(root / "database", names)


def _deqa(root):
    rows = [{"image": f"{n}.jpg", "gt_score": 2.0 + n, "gt_score_norm": 1.5 + n, "std": 0.5} for n in range(3)]
    write_metas(root / "metas" / "train_x.json", rows[:2])
    write_metas(root / "metas" / "test_x.json", rows[2:])
    write_images(root, ["0.jpg", "1.jpg", "2.jpg"])


def _table(root):
    names = [f"{n}.png" for n in range(9)]
    write_rows(root / "scores.csv", ["file", "score"], [(name, n * 10) for n, name in enumerate(names)])
    write_images(root, names)


TABLE = ["--labels", "scores.csv", "--image-column", "file", "--score-column", "score", "--direction", "higher"]
TABLE += ["--low", 0, "--high", 100, "--name", "mine"]
SETS = {
    "koniq10k": (_koniq10k, [], 11),
    "spaq": (_spaq, [], 7),
    "kadid10k": (_kadid10k, [], 15),
    "pipal": (_pipal, [], 15),
    "livec": (_livec, [], 5),
    "agiqa3k": (_agiqa3k, [], 8),
    "csiq": (_csiq, [], 15),
    "tid2013": (_tid2013, [], 15),
    "flive": (_flive, [], 8),
    "deqa": (_deqa, ["--name", "x"], 3),
    "table": (_table, TABLE, 9),
}


@pytest.mark.parametrize("name", SETS)
def test_every_set_is_prepared_by_one_command(name, tmp_path, cli):
    build, options, count = SETS[name]
    build(tmp_path / name)
    status, out, error = cli("prepare", name, "--root", tmp_path / name, "--out", tmp_path / "out", *options)
    assert status == 0, error
    data = load_from_disk(tmp_path / "out")
    assert sum(map(len, data.values())) == count
    assert {"deqa": "x", "table": "mine"}.get(name, name) in set(data["train"]["dataset"][:])
    for split in data.values():
        for row in split:
            assert 1 <= row["mos"] <= 5
            assert row["image"].size[0] > 0
    assert "README.md" in out
    assert f"{len(data['train'])}" in out
    status, out, _ = cli("prepare", name, "--root", tmp_path / name, "--out", tmp_path / "out", *options)
    assert status == 0
    assert "was there already" in out


def test_options_reach_the_library(tmp_path, cli):
    _koniq10k(tmp_path / "k")
    status, _, error = cli("prepare", "koniq10k", "--root", tmp_path / "k", "--out", tmp_path / "a", "--scale", "raw")
    assert status == 0, error
    assert set(load_from_disk(tmp_path / "a")["train"]["mos_scale"]) == {"raw"}
    _agiqa3k(tmp_path / "g")
    words = ["prepare", "agiqa3k", "--root", tmp_path / "g", "--target", "alignment"]
    assert cli(*words, "--out", tmp_path / "b", "--embed", "--seed", 4, "--shares", "0.5,0,0.5")[0] == 0
    data = load_from_disk(tmp_path / "b")
    assert list(data) == ["train", "test"]
    record = json.loads((tmp_path / "b" / "prepare.json").read_text())["request"]
    assert (record["dataset"], record["seed"], record["embed"]) == ("agiqa3k-alignment", 4, True)
    _livec(tmp_path / "l")
    words = ["prepare", "livec", "--root", tmp_path / "l", "--out", tmp_path / "c", "--keep-training-images"]
    assert cli(*words)[0] == 0
    assert sum(map(len, load_from_disk(tmp_path / "c").values())) == 12


def test_bad_input_ends_in_its_message_and_status_1(tmp_path, cli):
    _spaq(tmp_path / "s")
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


def test_mix_joins_what_prepare_wrote(tmp_path, cli):
    for name in ("kadid10k", "tid2013"):
        SETS[name][0](tmp_path / name)
    write_images(tmp_path / "tid2013" / "distorted_images", _levels("{}_01_{}.bmp", ["I01", "i02", "I03"]), first=500)
    for name in ("kadid10k", "tid2013"):
        assert cli("prepare", name, "--root", tmp_path / name, "--out", tmp_path / "p" / name)[0] == 0
    status, out, error = cli(
        "prepare", "mix", tmp_path / "p/kadid10k", tmp_path / "p/tid2013", "--out", tmp_path / "m"
    )
    assert status == 0, error
    assert len(load_from_disk(tmp_path / "m")["train"]) == 10
    assert "README.md" in out


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


def test_the_training_script_takes_a_prepared_mix(tmp_path, cli, monkeypatch):
    """Two sets, one of them without spreads, in two steps of training."""
    _koniq10k(tmp_path / "koniq10k")
    _spaq(tmp_path / "spaq")
    for name in ("koniq10k", "spaq"):
        words = ["--root", tmp_path / name, "--out", tmp_path / "p" / name]
        assert cli("prepare", name, *words)[0] == 0
    assert cli("prepare", "mix", tmp_path / "p/koniq10k", tmp_path / "p/spaq", "--out", tmp_path / "mix")[0] == 0
    script = ROOT / "examples" / "train_koniq.py"
    words = ["--dataset", tmp_path / "mix", "--output_dir", tmp_path / "run", "--max_steps", 2, "--bf16", "false"]
    words += ["--per_device_train_batch_size", 8, "--num_generations", 4, "--use_cpu", "true", "--held_out_images", 4]
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, words)])
    runpy.run_path(str(script), run_name="__main__")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["held_out_images"] == 4
