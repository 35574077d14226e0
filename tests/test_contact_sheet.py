"""The sheet of all degradations that examples/contact_sheet.py draws, and the one in the docs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from q_hawkeye_trl.data.degradations import DEGRADATIONS, degrade
from q_hawkeye_trl.demo.contents import draw_content

ROOT = Path(__file__).parents[1]


def drawn(out, *options):
    script = [sys.executable, str(ROOT / "examples" / "contact_sheet.py"), "--out", str(out), *options]
    subprocess.run(script, check=True, capture_output=True)
    return Image.open(out)


def cell(sheet, row, column, size=(112, 84)):
    left, top = 4 + column * (size[0] + 4), 4 + row * (size[1] + 22) + 18
    return np.array(sheet.crop((left, top, left + size[0], top + size[1])))


def test_every_cell_is_the_degraded_image(tmp_path):
    image = Image.fromarray(draw_content(13))
    sheet = drawn(tmp_path / "sheet.png", "--cell", "112", "--seed", "4")
    for row, kind in enumerate(DEGRADATIONS):
        assert np.array_equal(cell(sheet, row, 0), np.array(image))
        for severity in (1, 5):
            assert np.array_equal(cell(sheet, row, severity), np.array(degrade(image, f"{kind}@{severity}", 4)))
    sheet = drawn(tmp_path / "release.png", "--cell", "112", "--release")
    for column, name in enumerate(["darken", "darken@strong", "darken+gaussian_noise@strong"], 1):
        assert np.array_equal(cell(sheet, 3, column), np.array(degrade(image, name, 0)))


def test_the_sheet_in_the_docs_is_what_the_script_draws(tmp_path):
    path = ROOT / "docs" / "degradations.webp"
    assert path.stat().st_size < 400_000
    sheet = drawn(tmp_path / "sheet.png")
    with Image.open(path) as stored:
        assert stored.size == sheet.size
        difference = np.abs(np.asarray(stored.convert("RGB"), dtype=float) - np.asarray(sheet, dtype=float))
    assert difference.mean() < 8  # the docs' sheet is compressed
