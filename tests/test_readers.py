"""Each set in its official layout, from a few rows: what is read, and its traps."""

import math
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from openpyxl import Workbook

from iqa_layouts import (
    csiq_image,
    livec_image,
    refused,
    write_agiqa,
    write_csiq,
    write_flive,
    write_image,
    write_images,
    write_kadid,
    write_livec,
    write_pipal,
    write_spaq,
    write_tid,
)
from q_hawkeye_trl.data.labels import FileIndex, cell_text, parse_number
from q_hawkeye_trl.data.readers import READERS, SPAQ_FILE


def _min_max(scores):
    return pytest.approx([1 + 4 * (score - min(scores)) / (max(scores) - min(scores)) for score in scores])


# --- SPAQ ---


def test_spaq(tmp_path):
    write_spaq(tmp_path, [("00001.jpg", 2.0), ("00002.jpg", 96.0), ("00003.jpg", 49.0)])
    labels = READERS["spaq"](tmp_path)
    assert [row.image_id for row in labels.rows] == ["00001.jpg", "00002.jpg", "00003.jpg"]
    assert labels.rows[0].image == str(tmp_path / "TestImage" / "00001.jpg")
    assert labels.mos.tolist() == pytest.approx([1, 5, 3])
    assert np.isnan(labels.mos_std).all()
    assert all(row.split is None and row.reference is None for row in labels.rows)
    assert READERS["spaq"](tmp_path, scale="linear").mos.tolist() == pytest.approx([1.08, 4.84, 2.96])


def test_spaq_rows_without_a_score_are_kept_as_such_and_scores_beyond_the_scale_refused(tmp_path):
    write_spaq(tmp_path, [("a.jpg", None), ("b.jpg", 10.0), ("c.jpg", "n/a"), ("d.jpg", 20.0)])
    labels = READERS["spaq"](tmp_path)
    assert [row.score for row in labels.rows] == [None, 10.0, None, 20.0]
    assert np.isnan(labels.mos).tolist() == [True, False, True, False]
    write_spaq(tmp_path, [("a.jpg", 50.0), ("b.jpg", 100.5)])
    refused(r"row 3 \(b\.jpg\): .*100\.5.*\[0, 100\]", READERS["spaq"], tmp_path)


def test_files_that_are_not_excel_are_named(tmp_path):
    write_spaq(tmp_path, [("a.jpg", 50.0)])
    (tmp_path / SPAQ_FILE).write_bytes(b"<html>not found</html>")
    refused(r"attribute scores\.xlsx can't be read", READERS["spaq"], tmp_path)
    Workbook().save(tmp_path / SPAQ_FILE)
    refused("Image name, MOS", READERS["spaq"], tmp_path)
    (tmp_path / SPAQ_FILE).unlink()
    (tmp_path / "Annotations" / "readme.txt").touch()
    refused(r"SPAQ.*readme\.txt", READERS["spaq"], tmp_path, error=FileNotFoundError)


# --- KADID-10k ---

KADID = [
    ("I01_01_01.png", "I01.png", 4.57, 0.5),
    ("I01_01_05.png", "I01.png", 1.0, 0.25),
    ("I02_01_01.png", "I02.png", 4.93, 0.81),
    ("I02_01_05.png", "I02.png", 2.0, 0.0),
]


def test_kadid_dmos_is_better_when_higher_and_var_is_a_variance_unless_the_numbers_say_otherwise(tmp_path):
    write_kadid(tmp_path, KADID)
    write_image(tmp_path / "images" / "I01.png", 1)
    labels = READERS["kadid10k"](tmp_path)
    assert labels.direction == "higher"
    assert labels.mos.tolist() == _min_max([row[2] for row in KADID])
    assert [row.std for row in labels.rows] == pytest.approx([math.sqrt(row[3]) for row in KADID])
    assert labels.mos_std.tolist() == pytest.approx([math.sqrt(row[3]) * 4 / 3.93 for row in KADID])
    assert [row.reference for row in labels.rows] == ["I01.png", "I01.png", "I02.png", "I02.png"]
    assert labels.references == {"I01.png": str(tmp_path / "images" / "I01.png")}  # beside the distorted images
    assert labels.splits == "by reference"
    as_std = READERS["kadid10k"](tmp_path, spread="std")
    assert [row.std for row in as_std.rows] == [row[3] for row in KADID]
    refused("'sd' of KADID-10k", READERS["kadid10k"], tmp_path, spread="sd")


@pytest.mark.parametrize(("name", "spread"), [("standard deviation", np.std), ("variance", np.var)])
def test_kadid_the_numbers_decide_what_var_is(tmp_path, name, spread):
    """The released column is named `var` and holds standard deviations: thirty whole-number answers leave no doubt."""
    rng, rows = np.random.default_rng(0), []
    for number in range(200):
        answers = np.clip(np.rint(rng.normal(rng.uniform(1.5, 4.5), 0.8, 30)), 1, 5)
        value = round(float(spread(answers)), 3)
        rows.append((f"I01_01_{number:03}.png", "I01.png", round(float(answers.mean()), 2), value))
    write_kadid(tmp_path, rows)
    labels = READERS["kadid10k"](tmp_path)
    expected = [math.sqrt(row[3]) if name == "variance" else row[3] for row in rows]
    assert [row.std for row in labels.rows] == pytest.approx(expected)
    assert f"read as a {name}" in labels.notes[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"dist_img,ref_img,dmos\na.png,b.png,3\n", r"dmos\.csv: .*var.*dist_img, ref_img, dmos"),
        (b"dist_img,ref_img,dmos,var\na.png,b.png,3,-0.1\n", "line 2: `var` must be a number of at least 0"),
        (b"dist_img,ref_img,dmos,var\n../a.png,b.png,3,0.1\n", r"line 2: .*'\.\./a\.png'"),
        (b"dist_img,ref_img,dmos,var\na.png,b.png,3\n", "line 2: expected 4 cells"),
        ("dist_img,ref_img,dmos,var\né.png,b,3,1\n".encode("latin-1"), r"dmos\.csv is not UTF-8 text"),
    ],
)
def test_kadid_columns_and_cells_are_checked(tmp_path, content, message):
    write_kadid(tmp_path, KADID)
    (tmp_path / "dmos.csv").write_bytes(content)
    refused(message, READERS["kadid10k"], tmp_path)


# --- PIPAL ---


def test_pipal_reads_every_label_file_and_takes_the_reference_from_the_name(tmp_path):
    rows = [("A0001_00_00.bmp", 1520.0648), ("A0001_00_01.bmp", 916.7136), ("A0002_01_03.bmp", 1835.9856)]
    write_pipal(tmp_path, rows)
    write_image(tmp_path / "Train_Ref" / "A0001.bmp", 1)
    write_image(tmp_path / "Distortion_1" / "A0002_01_03.bmp", 2)
    labels = READERS["pipal"](tmp_path)
    assert [row.reference for row in labels.rows] == ["A0001.bmp", "A0001.bmp", "A0002.bmp"]
    assert labels.mos.tolist() == _min_max([score for _, score in rows])
    assert labels.rows[2].image == str(tmp_path / "Distortion_1" / "A0002_01_03.bmp")
    assert labels.rows[0].image == str(tmp_path / "Distortion_1" / "A0001_00_00.bmp")  # in none: where it would be
    assert labels.references == {"A0001.bmp": str(tmp_path / "Train_Ref" / "A0001.bmp")}
    assert len(labels.files) == 2
    refused("no scale with fixed ends", READERS["pipal"], tmp_path, scale="linear")


def test_pipal_broken_lines_are_named(tmp_path):
    write_pipal(tmp_path, [("A0001_00_00.bmp", 1500.0)])
    (tmp_path / "Train_Label" / "A0001.txt").write_text("A0001_00_00.bmp 1520\n")
    refused(r"A0001\.txt, line 1: expected `name,rating`", READERS["pipal"], tmp_path)
    (tmp_path / "Train_Label" / "A0001.txt").unlink()
    refused(r"A0001\.txt and so on", READERS["pipal"], tmp_path, error=FileNotFoundError)


# --- LIVE Challenge ---

LIVEC = [(f"t{n}.bmp", 50.0 + n, 18.0) for n in range(1, 8)] + [("3.bmp", 3.42, 7.0), ("4.JPG", 92.43, 19.0)]


def test_livec_drops_the_practice_images_unless_asked(tmp_path):
    write_livec(tmp_path, LIVEC)
    labels = READERS["livec"](tmp_path)
    assert [row.image_id for row in labels.rows] == ["3.bmp", "4.JPG"]
    assert labels.mos.tolist() == pytest.approx([1, 5])
    assert labels.mos_std.tolist() == pytest.approx([7 * 4 / 89.01, 19 * 4 / 89.01])
    write_images(tmp_path / "Images", [livec_image(name) for name, _, _ in LIVEC])
    everything = READERS["livec"](tmp_path, keep_training_images=True)
    assert len(everything.rows) == 9
    assert all(Path(row.image).is_file() for row in everything.rows)
    assert "trainingImages" in everything.rows[0].image
    write_livec(tmp_path / "without", LIVEC[7:])
    without = READERS["livec"](tmp_path / "without")
    assert [row.image_id for row in without.rows] == ["3.bmp", "4.JPG"]
    assert "The 0 practice images" in without.notes[0]


def test_livec_files_must_belong_together(tmp_path):
    write_livec(tmp_path, LIVEC)
    write_livec(tmp_path / "other", LIVEC[:-1])
    (tmp_path / "other" / "Data" / "AllMOS_release.mat").rename(tmp_path / "Data" / "AllMOS_release.mat")
    refused("9 images, 8 scores and 9 standard deviations", READERS["livec"], tmp_path)
    (tmp_path / "Data" / "AllMOS_release.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    refused(r"AllMOS_release\.mat", READERS["livec"], tmp_path)


# --- AGIQA-3K ---

AGIQA = [
    ("sd1.5_normal_000.jpg", "a cat, sitting", 0.0, 0.1, 3.0, 0.2),
    ("xl2.2_normal_000.jpg", "a cat, sitting", 4.489, 0.3, 1.0, 0.4),
    ("sd1.5_normal_001.jpg", "a dog", 2.0, 0.5, 2.0, 0.6),
]


def test_agiqa_has_two_targets_and_keeps_a_prompts_images_together(tmp_path):
    write_agiqa(tmp_path, AGIQA)
    quality, alignment = READERS["agiqa3k"](tmp_path), READERS["agiqa3k"](tmp_path, target="alignment")
    assert (quality.name, alignment.name) == ("agiqa3k", "agiqa3k-alignment")
    assert [row.score for row in quality.rows] == [0.0, 4.489, 2.0]
    assert [(row.score, row.std) for row in alignment.rows] == [(3.0, 0.2), (1.0, 0.4), (2.0, 0.6)]
    assert [row.group for row in quality.rows] == ["a cat, sitting", "a cat, sitting", "a dog"]
    refused("'mos' of AGIQA-3K; choose quality or alignment", READERS["agiqa3k"], tmp_path, target="mos")


# --- CSIQ ---

CSIQ = [
    ("1600.AWGN.1.png", 0.0, 0.03),
    ("1600.AWGN.5.png", 1.0, 0.02),
    ("1600.jpeg2000.3.png", 0.5, 0.1),
    ("aerial_city.contrast.2.png", 0.25, 0.05),
    ("aerial_city.JPEG.4.png", 0.75, 0.05),
]


def test_csiq_is_reversed_and_finds_its_files(tmp_path):
    write_csiq(tmp_path, CSIQ)
    write_images(tmp_path / "dst_imgs", [csiq_image(name) for name, _, _ in CSIQ])
    write_image(tmp_path / "src_imgs" / "1600.png", 9)
    labels = READERS["csiq"](tmp_path)
    assert labels.direction == "lower"
    assert [row.image_id for row in labels.rows] == [name for name, _, _ in CSIQ]  # the number 1600 is no 1600.0
    assert all(Path(row.image).is_file() for row in labels.rows)
    assert labels.mos.tolist() == pytest.approx([5, 1, 3, 4, 2])
    assert [row.score for row in labels.rows] == [dmos for _, dmos, _ in CSIQ]  # as released
    assert labels.mos_std.tolist() == pytest.approx([4 * std for _, _, std in CSIQ])
    assert [row.reference for row in labels.rows][:4] == ["1600.png"] * 3 + ["aerial_city.png"]
    assert labels.references == {"1600.png": str(tmp_path / "src_imgs" / "1600.png")}
    assert READERS["csiq"](tmp_path, scale="linear").mos.tolist() == pytest.approx([5, 1, 3, 4, 2])


def test_csiq_unknown_distortions_and_sheets_are_named(tmp_path):
    write_csiq(tmp_path, CSIQ)
    book = Workbook()
    book.active.title = "all_by_image"
    book.active.append(["image", "dst_type", "dst_lev", "dmos_std", "dmos"])
    book.active.append([1600, "snow", 1, 0.1, 0.5])
    book.save(tmp_path / "csiq.DMOS.xlsx")
    refused(r"row 2: unknown `dst_type` 'snow'", READERS["csiq"], tmp_path)
    book.active.title = "sheet"
    book.save(tmp_path / "csiq.DMOS.xlsx")
    refused(r"'all_by_image'.*sheet", READERS["csiq"], tmp_path)


# --- TID2013 ---

TID = [("I01_01_1.bmp", 0.24242, 0.13), ("i01_01_2.bmp", 7.21429, 0.16), ("i25_24_5.bmp", 3.5, 0.1)]


def test_tid_file_names_are_found_whatever_their_case(tmp_path):
    write_tid(tmp_path, TID)
    write_image(tmp_path / "distorted_images" / "i01_01_1.BMP", 1)
    write_image(tmp_path / "distorted_images" / "I01_01_2.bmp", 2)
    write_image(tmp_path / "reference_images" / "i25.bmp", 3)
    labels = READERS["tid2013"](tmp_path)
    assert [row.image_id for row in labels.rows] == [name for name, _, _ in TID]
    assert [Path(row.image).name for row in labels.rows] == ["i01_01_1.BMP", "I01_01_2.bmp", "i25_24_5.bmp"]
    assert [row.reference for row in labels.rows] == ["I01.BMP", "I01.BMP", "I25.BMP"]
    assert labels.references == {"I25.BMP": str(tmp_path / "reference_images" / "i25.bmp")}
    assert [row.std for row in labels.rows] == [0.13, 0.16, 0.1]
    assert labels.mos.tolist() == _min_max([score for _, score, _ in TID])


def test_tid_spreads_must_be_as_many_as_the_scores_or_none(tmp_path):
    write_tid(tmp_path, TID)
    (tmp_path / "mos_std.txt").write_text("0.1\n")
    refused("expected a number for each of the 3 images, got 1", READERS["tid2013"], tmp_path)
    (tmp_path / "mos_std.txt").unlink()
    labels = READERS["tid2013"](tmp_path)
    assert np.isnan(labels.mos_std).all()
    assert "no standard deviations" in labels.notes[0]


# --- FLIVE ---


def test_flive_names_have_the_folder_of_their_source(tmp_path):
    write_flive(tmp_path, [("voc_emotic_ava/a.jpg", 0.0), ("EE371R/b.jpg", 100.0)])
    labels = READERS["flive"](tmp_path)
    assert labels.rows[0].image == str(tmp_path / "database" / "voc_emotic_ava" / "a.jpg")
    assert labels.mos.tolist() == pytest.approx([1, 5])
    write_flive(tmp_path, [("/etc/passwd", 0.0)])
    refused(r"line 2: expected a path inside", READERS["flive"], tmp_path)


# --- common ---


@pytest.mark.parametrize("name", sorted(set(READERS) - {"table", "deqa"}))
def test_missing_folders_are_named_by_every_reader(name, tmp_path):
    refused("nowhere", READERS[name], tmp_path / "nowhere", error=FileNotFoundError)
    refused(tmp_path.name, READERS[name], tmp_path, error=FileNotFoundError)


def test_images_can_lie_elsewhere(tmp_path):
    write_spaq(tmp_path / "spaq", [("a.jpg", 1.0), ("b.jpg", 2.0)])
    write_images(tmp_path / "pictures", ["a.jpg"])
    labels = READERS["spaq"](tmp_path / "spaq", images=str(tmp_path / "pictures"))
    assert labels.rows[0].image == str(tmp_path / "pictures" / "a.jpg")
    assert labels.folder == tmp_path / "pictures"


def test_names_are_found_by_case_and_unicode_form_and_never_by_chance(tmp_path):
    composed, decomposed = unicodedata.normalize("NFC", "é.png"), unicodedata.normalize("NFD", "é.png")
    write_images(tmp_path, [decomposed, "A.png"])
    index = FileIndex([tmp_path])
    for name, found in ((composed, decomposed), ("a.PNG", "A.png"), ("b.png", "b.png")):
        assert index.path(name) == str(tmp_path / found)
    write_image(tmp_path / "a.png", 3)
    index = FileIndex([tmp_path])
    assert index.path("a.png") == str(tmp_path / "a.png")
    refused("both could be", index.path, "a.PNG")


@pytest.mark.parametrize(
    ("value", "number"),
    [
        *((value, None) for value in (None, "", " ", "nan", "inf", "n/a", True, [], float("nan"))),
        *(("3.5", 3.5), (" 2 ", 2.0), (7, 7.0), ("1e1", 10.0), (np.float64(1), 1)),
    ],
)
def test_cells_hold_a_finite_number_or_no_score(value, number):
    assert parse_number(value) == number


@pytest.mark.parametrize(
    ("cell", "text"), [(1600, "1600"), (1600.0, "1600"), (0.5, "0.5"), (" a ", "a"), (None, ""), ("1600.0", "1600.0")]
)
def test_whole_numbers_of_a_sheet_are_names_without_a_point(cell, text):
    assert cell_text(cell) == text
