"""The sheet of all degradations, and the one in the docs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from q_hawkeye_trl.data.degradations import DEGRADATIONS, degrade
from q_hawkeye_trl.demo.contents import draw_content
from q_hawkeye_trl.pairs.contact_sheet import contact_sheet, release_sheet

ROOT = Path(__file__).parents[1]


def cell(sheet, row, column, size=(112, 84)):
    left, top = 4 + column * (size[0] + 4), 4 + row * (size[1] + 22) + 18
    return np.array(sheet.crop((left, top, left + size[0], top + size[1])))


def test_every_cell_is_the_degraded_image():
    image = Image.fromarray(draw_content(1))
    sheet = contact_sheet(image, cell=112, seed=4)
    for row, kind in enumerate(DEGRADATIONS):
        assert np.array_equal(cell(sheet, row, 0), np.array(image))
        for severity in (1, 5):
            assert np.array_equal(cell(sheet, row, severity), np.array(degrade(image, f"{kind}@{severity}", 4)))


def test_the_releases_sheet_shows_both_strengths_and_a_combination():
    image = Image.fromarray(draw_content(2))
    sheet = release_sheet(image, cell=112)
    expected = ["darken", "darken@strong", "darken+gaussian_noise@strong"]
    for column, name in enumerate(expected, 1):
        assert np.array_equal(cell(sheet, 3, column), np.array(degrade(image, name, 0)))


def test_the_sheet_in_the_docs_is_what_the_script_draws(tmp_path):
    path = ROOT / "docs" / "degradations.webp"
    assert path.stat().st_size < 400_000
    script = [sys.executable, str(ROOT / "examples" / "contact_sheet.py"), "--out", str(tmp_path / "sheet.png")]
    subprocess.run(script, check=True, capture_output=True)
    with Image.open(path) as stored, Image.open(tmp_path / "sheet.png") as drawn:
        assert stored.size == drawn.size
        difference = np.abs(np.asarray(stored.convert("RGB"), dtype=float) - np.asarray(drawn, dtype=float))
    assert difference.mean() < 8  # the docs' sheet is compressed
