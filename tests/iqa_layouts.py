"""Small copies of the IQA sets in their official layouts: label files written from rows, and images that differ."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from openpyxl import Workbook
from PIL import Image
from scipy.io import savemat

CSIQ_TYPES = {
    "AWGN": ("awgn", "noise"),
    "BLUR": ("blur", "blur"),
    "contrast": ("contrast", "contrast"),
    "fnoise": ("fnoise", "fnoise"),
    "JPEG": ("jpeg", "jpeg"),
    "jpeg2000": ("jpeg2000", "jpeg 2000"),
}


def write_image(path: Path, number: int, size: tuple[int, int] = (128, 64)) -> None:
    """
    Writes an image that is like no other number's, in lossy formats too: the number's 16 bits as squares of 8 x 8
    pixels. A name without a known ending gets a PNG, since Pillow goes by the content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    bits = np.array([[number >> bit & 1 for bit in range(8)], [number >> bit & 1 for bit in range(8, 16)]], bool)
    canvas = np.zeros((size[1], size[0]), bool)
    canvas[:16, :64] = np.kron(bits, np.ones((8, 8), bool))
    image, kind = Image.fromarray(canvas), path.suffix.lower()
    if kind in (".jpg", ".jpeg"):
        image.convert("L").save(path, "JPEG")
    else:
        image.save(path, "BMP" if kind == ".bmp" else "PNG")


def write_images(folder: Path, names: Sequence[str], size: tuple[int, int] = (128, 64), first: int = 0) -> None:
    for number, name in enumerate(names, first):
        write_image(folder / name, number, size)


def write_rows(path: Path, header: Sequence[str], rows: Sequence[Sequence]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def write_spaq(root: Path, rows: Sequence[tuple[str, float]]) -> None:
    book = Workbook()
    sheet = book.active
    sheet.append(["Image name", "MOS", "Brightness", "Colorfulness", "Contrast", "Noisiness", "Sharpness"])
    for name, mos in rows:
        sheet.append([name, mos, 50.0, 50.0, 50.0, 50.0, 50.0])
    (root / "Annotations").mkdir(parents=True, exist_ok=True)
    (root / "TestImage").mkdir(exist_ok=True)
    book.save(root / "Annotations" / "MOS and Image attribute scores.xlsx")


def write_kadid(root: Path, rows: Sequence[tuple[str, str, float, float]]) -> None:
    """Rows of distorted image, reference, "dmos", the column `var`."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    write_rows(root / "dmos.csv", ["dist_img", "ref_img", "dmos", "var"], rows)


def write_pipal(root: Path, rows: Sequence[tuple[str, float]]) -> None:
    texts: dict[str, list[str]] = {}
    for name, elo in rows:
        texts.setdefault(name.split("_")[0], []).append(f"{name},{elo}")
    (root / "Train_Label").mkdir(parents=True, exist_ok=True)
    (root / "Train_Dist").mkdir(exist_ok=True)
    for reference, lines in texts.items():
        (root / "Train_Label" / f"{reference}.txt").write_text("\n".join(lines) + "\n")


def write_livec(root: Path, rows: Sequence[tuple[str, float, float]]) -> None:
    (root / "Data").mkdir(parents=True, exist_ok=True)
    (root / "Images" / "trainingImages").mkdir(parents=True, exist_ok=True)
    names, mos, stds = zip(*rows, strict=True)
    cells = np.empty((len(names), 1), dtype=object)
    cells[:, 0] = names
    savemat(root / "Data" / "AllImages_release.mat", {"AllImages_release": cells})
    savemat(root / "Data" / "AllMOS_release.mat", {"AllMOS_release": np.array([mos])})
    savemat(root / "Data" / "AllStdDev_release.mat", {"AllStdDev_release": np.array([stds])})


def livec_image(name: str) -> str:
    """Where an image of LIVE Challenge lies, below `Images/`."""
    return f"trainingImages/{name}" if name.startswith("t") else name


def write_agiqa(root: Path, rows: Sequence[tuple]) -> None:
    """Rows of name, prompt, quality, its std, alignment, its std."""
    header = ["name", "prompt", "adj1", "adj2", "style", "mos_quality", "std_quality", "mos_align", "std_align"]
    write_rows(root / "data.csv", header, [(*row[:2], "", "", "", *row[2:]) for row in rows])


def write_csiq(root: Path, rows: Sequence[tuple[str, float, float]]) -> None:
    """Rows of image file (`1600.AWGN.1.png`), DMOS, its std; the sheet has its header in row 4, as released."""
    book = Workbook()
    book.active.title = "all_by_distortion"
    sheet = book.create_sheet("all_by_image")
    sheet.append(["CSIQ Image Database"])
    sheet.append([])
    sheet.append([])
    sheet.append([None, None, "image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "dmos"])
    for name, dmos, std in rows:
        stem, kind, level, _ = name.split(".")
        image = int(stem) if stem.isdigit() else stem  # 1600 is a number there
        types = list(CSIQ_TYPES)
        sheet.append([None, None, image, types.index(kind) + 1, CSIQ_TYPES[kind][1], int(level), std, dmos])
    for folder, _ in CSIQ_TYPES.values():
        (root / "dst_imgs" / folder).mkdir(parents=True, exist_ok=True)
    book.save(root / "csiq.DMOS.xlsx")


def csiq_image(name: str) -> str:
    """Where an image of CSIQ lies, below `dst_imgs/`."""
    return f"{CSIQ_TYPES[name.split('.')[1]][0]}/{name}"


def write_tid(root: Path, rows: Sequence[tuple[str, float, float]]) -> None:
    (root / "distorted_images").mkdir(parents=True, exist_ok=True)
    (root / "mos_with_names.txt").write_text("".join(f"{mos:.5f} {name}\n" for name, mos, _ in rows))
    (root / "mos_std.txt").write_text("".join(f"{std:.5f}\n" for _, _, std in rows))


def write_flive(root: Path, rows: Sequence[tuple[str, float]]) -> None:
    (root / "database").mkdir(parents=True, exist_ok=True)
    write_rows(root / "labels_image.csv", ["name", "mos"], rows)


def write_metas(path: Path, rows: Sequence[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))


def refused(match: str, function: Callable, *arguments, error: type[Exception] = ValueError, **options) -> None:
    """Calls a function that must raise an error with a message of that pattern."""
    with pytest.raises(error, match=match):
        function(*arguments, **options)
