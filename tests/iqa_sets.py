"""Every set that `q-hawkeye prepare` reads, small, and the command line in this process."""

import sys

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


def run_cli(monkeypatch, capsys, *words) -> tuple[int, str, str]:
    """Runs `q-hawkeye` with these words; returns its exit status and what it printed on both streams."""
    monkeypatch.setattr(sys, "argv", ["q-hawkeye", *map(str, words)])
    try:
        main()
        status = 0
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    streams = capsys.readouterr()
    return status, streams.out, streams.err


def levels(pattern, references):
    """Names of five levels of each reference."""
    return [pattern.format(r, level) for r in references for level in range(1, 6)]


def _koniq10k(root):
    write_synthetic_koniq(root, train=6, validation=2, test=3, progress=False)


def _spaq(root):
    names = [f"{n:05}.jpg" for n in range(1, 8)]
    write_spaq(root, [(name, 10.0 + n) for n, name in enumerate(names)])
    write_images(root / "TestImage", names)


def _kadid10k(root):
    names = levels("{}_01_0{}.png", ["I01", "I02", "I03"])
    write_kadid(root, [(name, name[:3] + ".png", 4 - n / 9, 0.3) for n, name in enumerate(names)])
    write_images(root / "images", names)


def _pipal(root):
    names = levels("{}_00_0{}.bmp", ["A0001", "A0002", "A0003"])
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
    names = levels("{}.AWGN.{}.png", ["1600", "lake", "log"])
    write_csiq(root, [(name, n / 20, 0.05) for n, name in enumerate(names)])
    write_images(root / "dst_imgs", [csiq_image(name) for name in names])


def _tid2013(root):
    names = levels("{}_01_{}.bmp", ["I01", "i02", "I03"])
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
# by name: what writes the set, options, images
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
