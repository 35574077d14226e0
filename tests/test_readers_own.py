"""DeQA-Score's metas and the user's own tables."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from datasets import Image as ImageFeature
from PIL import Image

from iqa_layouts import refused, write_image, write_metas, write_rows
from q_hawkeye_trl.data.label_tables import TableColumns
from q_hawkeye_trl.data.labels import EmbeddedImage
from q_hawkeye_trl.data.readers import READERS


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


# --- DeQA-Score ---

LOW, HIGH = 1.0962, 4.31  # of the whole of KonIQ-10k, whose extremes are not among the rows here


def _meta(image, score, norm=True):
    slope = 4 / (HIGH - LOW)
    row = {"id": f"{image}->x", "image": image, "gt_score": score, "std": 0.5, "std_norm": 0.5 * slope}
    return row | ({"gt_score_norm": 1 + slope * (score - LOW), "level_probs": [0.2] * 5} if norm else {})


def _metas(root, train, test):
    write_metas(root / "metas" / "train_koniq_7k.json", train)
    write_metas(root / "metas" / "test_koniq_2k.json", test)


def test_metas_keep_their_norm_and_splits(tmp_path):
    root = tmp_path / "KONIQ"
    _metas(root, [_meta("KONIQ/images/a.jpg", 2.0), _meta("KONIQ/images/b.jpg", 3.479167)], [_meta("c.jpg", 4.0)])
    write_image(root / "images" / "a.jpg", 1)
    labels = READERS["deqa"](root)
    assert labels.name == "koniq"
    by_name = {row.image_id: (row, mos) for row, mos in zip(labels.rows, labels.mos, strict=True)}
    assert by_name["KONIQ/images/b.jpg"][1] == pytest.approx(3.966, abs=5e-4)
    assert by_name["KONIQ/images/a.jpg"][0].image == str(root / "images" / "a.jpg")  # counted from the folder above
    splits = {name: row.split for name, (row, _) in by_name.items()}
    assert splits == {"KONIQ/images/a.jpg": "train", "KONIQ/images/b.jpg": "train", "c.jpg": "test"}
    assert labels.mos_std.tolist() == pytest.approx([0.5 * 4 / (HIGH - LOW)] * 3)
    assert "min = 1.0962 and max = 4.31 over the whole set" in labels.rule


def test_metas_without_norms_take_the_line_of_the_others_or_the_extremes_of_all(tmp_path):
    _metas(tmp_path, [_meta("a.jpg", 2.0), _meta("b.jpg", 3.0)], [_meta("c.jpg", 4.0, norm=False)])
    mos = READERS["deqa"](tmp_path).mos
    assert mos[0] == pytest.approx(1 + 4 * (4.0 - LOW) / (HIGH - LOW))  # test_ sorts first
    _metas(tmp_path, [_meta("a.jpg", 2.0, norm=False)], [_meta("c.jpg", 4.0, norm=False)])
    labels = READERS["deqa"](tmp_path)
    assert labels.mos.tolist() == [5, 1]
    assert "no gt_score_norm" in labels.rule


def _scored(root, scores, norms, name="{}.png"):
    rows = [
        {"image": name.format(n), "gt_score": score, "gt_score_norm": norm}
        for n, (score, norm) in enumerate(zip(scores, norms, strict=True))
    ]
    write_metas(root / "metas" / "test_x.json", rows)


def test_csiq_has_a_minus_in_the_metas(tmp_path):
    _scored(tmp_path, [0, -0.3, -1], [5, 3.8, 1])
    labels = READERS["deqa"](tmp_path)
    assert labels.direction == "higher"
    assert labels.mos.tolist() == pytest.approx([5, 3.8, 1])
    assert np.isnan(labels.mos_std).all()


def test_references_of_metas_come_from_file_names(tmp_path):
    _scored(tmp_path, [1, 2, 3], [1, 2, 3], name="KADID10K/images/I0{}_01_01.png")
    labels = READERS["deqa"](tmp_path, reference_pattern="^(I[0-9]+)_")
    assert [row.reference for row in labels.rows] == ["I00", "I01", "I02"]
    for text, message in (("I01", "needs a group"), ("(I01", "reference-pattern"), ("(I04)", r"I00_.*does not match")):
        refused(message, READERS["deqa"], tmp_path, reference_pattern=text)


def test_files_can_be_named_with_their_split(tmp_path):
    write_metas(tmp_path / "mine.json", [_meta("a.jpg", 2.0), _meta("b.jpg", 3.0)])
    labels = READERS["deqa"](tmp_path, labels=["validation=mine.json"], name="mine")
    assert labels.name == "mine"
    assert {row.split for row in labels.rows} == {"validation"}
    refused(r"--labels SPLIT=mine\.json", READERS["deqa"], tmp_path, labels=["mine.json"])
    refused(r"other\.json", READERS["deqa"], tmp_path, labels=["test=other.json"], error=FileNotFoundError)


def test_other_files_in_place_of_metas_are_refused(tmp_path):
    refused(r"train_koniq_7k\.json", READERS["deqa"], tmp_path, error=FileNotFoundError)
    refused("normalised by `deqa`", READERS["deqa"], tmp_path, scale="linear")
    path = tmp_path / "metas" / "train_x.json"
    write_metas(path, [{"image": ["a.jpg"], "gt_score": 1}])
    refused(r"entry 1: expected `image`, a relative path, got \['a\.jpg'\]", READERS["deqa"], tmp_path)
    path.write_text("{")
    refused("not JSON", READERS["deqa"], tmp_path)
    write_metas(path, [])
    refused("expected a list", READERS["deqa"], tmp_path)


@pytest.mark.parametrize("norms", [(1.0, 3.5, 5.0), (5.0, 3.0, 1.0), (0.9, 3.0, 5.1)])
def test_norms_that_are_not_linear_within_the_scale_are_refused(tmp_path, norms):
    _scored(tmp_path, range(3), norms)
    refused(r"gt_score_norm.*gt_score", READERS["deqa"], tmp_path)


# --- tables ---

ROWS = [
    {"image": "a.png", "mos": 10.0, "sd": 5.0, "ref": "r1", "part": "train"},
    {"image": "sub/b.png", "mos": 90.0, "sd": 2.0, "ref": "r1", "part": "val"},
    {"image": "c.png", "mos": None, "sd": None, "ref": "r2", "part": "test"},
]


def _write(root, kind):
    path = root / f"labels.{kind}"
    if kind == "csv":
        write_rows(path, list(ROWS[0]), [["" if cell is None else cell for cell in row.values()] for row in ROWS])
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)) + "\n")
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        Dataset.from_list(ROWS).save_to_disk(path)
    return path.name


def _read(root, labels, **options):
    options = {"direction": "higher", "ends": (0, 100), "name": "mine"} | options
    return READERS["table"](root, labels=labels, **options)


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "parquet", "folder"])
def test_every_format_gives_the_same_rows(tmp_path, kind):
    labels = _read(tmp_path, _write(tmp_path, kind), columns=TableColumns(std="sd", reference="ref", split="part"))
    assert labels.mos[:2].tolist() == pytest.approx([1.4, 4.6])
    assert np.isnan(labels.mos[2])
    assert labels.mos_std[:2].tolist() == pytest.approx([0.2, 0.08])
    assert [row.reference for row in labels.rows] == ["r1", "r1", "r2"]
    assert [row.split for row in labels.rows] == ["train", "validation", "test"]
    assert [row.image_id for row in labels.rows] == ["a.png", "sub/b.png", "c.png"]
    assert labels.rows[1].image == str(tmp_path / "sub" / "b.png")
    assert labels.name == "mine"


def test_a_lower_direction_is_reversed_and_an_unusual_one_is_noted(tmp_path):
    name = _write(tmp_path, "csv")
    labels = _read(tmp_path, name, direction="lower")
    assert labels.mos[:2].tolist() == pytest.approx([4.6, 1.4])
    assert "not lower" in labels.notes[0]
    (tmp_path / "d.csv").write_text("image,DMOS\na.png,3\nb.png,5\n")
    notes = _read(tmp_path, "d.csv", columns=TableColumns(score="DMOS"), ends=None, scale="deqa").notes
    assert "not higher" in notes[0]


def test_variances_are_rooted(tmp_path):
    labels = _read(tmp_path, _write(tmp_path, "csv"), columns=TableColumns(variance="sd"))
    assert [row.std for row in labels.rows[:2]] == pytest.approx([5**0.5, 2**0.5])
    refused("name one", _read, tmp_path, "labels.csv", columns=TableColumns(std="sd", variance="sd"))


def test_references_can_be_read_from_file_names(tmp_path):
    (tmp_path / "t.csv").write_text("image,mos\nI01_01_02.png,3\nI02_01_02.png,4\n")
    labels = _read(tmp_path, "t.csv", reference_pattern=r"^(I\d+)_")
    assert [row.reference for row in labels.rows] == ["I01", "I02"]
    refused(r"line 2 \(I01_01_02\.png\)", _read, tmp_path, "t.csv", reference_pattern=r"^(A\d+)_")


def _png(colour):
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (colour, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["parquet", "folder", "other library"])
def test_images_inside_a_table_are_taken_from_there(tmp_path, kind):
    rows = [{"picture": {"bytes": _png(n), "path": f"{n}.png"}, "mos": 1.0 + n} for n in range(3)]
    table = Dataset.from_list(rows).cast_column("picture", ImageFeature())
    if kind == "parquet":
        table.to_parquet(tmp_path / "data")
    elif kind == "folder":
        DatasetDict(train=table, test=table).save_to_disk(tmp_path / "data")
    else:  # no note for `datasets` in its schema
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data")
    if kind != "folder":
        (tmp_path / "data").rename(tmp_path / "data.parquet")
    path = "data" if kind == "folder" else "data.parquet"
    labels = _read(tmp_path, path, columns=TableColumns(image="picture"), ends=(1, 5))
    assert all(isinstance(row.image, EmbeddedImage) for row in labels.rows)
    assert [row.image.read() for row in labels.rows[:3]] == [_png(n) for n in range(3)]
    assert labels.rows[1].image_id == "1.png"
    if kind == "folder":
        assert [row.split for row in labels.rows] == ["train"] * 3 + ["test"] * 3


def test_empty_spreads_and_scores_that_are_not_numbers(tmp_path):
    (tmp_path / "t.csv").write_text('image,mos,s\na,1_0,\nb,"3,5",NaN\nc,4,0\nd,5,2\n')
    labels = _read(tmp_path, "t.csv", columns=TableColumns(std="s"))
    assert [row.score for row in labels.rows] == [None, None, 4, 5]  # no score, which `prepare` reports
    assert [row.std for row in labels.rows] == [None, None, 0, 2]


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("image,mos\na.png,3\nb.png,101\n", {}, r"line 3 \(b\.png\): .*101.*\[0, 100\]"),
        ("file,mos\na.png,3\n", {}, "image.*file, mos"),
        ("image,mos\n,3\n", {}, "line 2: column `image` has no path"),
        ("image,mos\n", {}, "there are no rows"),
        ("image,mos,s\na,3,-1\n", {"std": "s"}, "line 2: column `s` must be a number of at least 0"),
        ("image,mos,s\na,3,x\n", {"std": "s"}, "line 2: column `s` must be .*, got 'x'"),
        ("image,mos,s\na,3,inf\n", {"variance": "s"}, "line 2: column `s` must be .*, got 'inf'"),
        ("image,mos,mos\na,3,4\n", {}, "more than one column mos"),
        ("image,mos,s\na,3,x\n", {"split": "s"}, "line 2: expected a split"),
        ("image,mos,s\na,3,test\nb,4,\n", {"split": "s"}, r"line 3 \(b\).*split"),
    ],
)
def test_errors_of_tables_name_the_row(tmp_path, text, columns, message):
    (tmp_path / "t.csv").write_text(text)
    refused(message, _read, tmp_path, "t.csv", columns=TableColumns(**columns))


def test_other_files_and_options_are_refused(tmp_path):
    refused(r"no table .*t\.csv", _read, tmp_path, "t.csv", error=FileNotFoundError)
    refused("--low and --high", _read, tmp_path, "t.csv", ends=None)
    for name, content, message in (
        ("t.tsv", "image\tmos\n", r"expected a \.csv"),
        ("t.json", "{]", r"t\.json can't be read"),
        ("t.jsonl", '{"image": "a"}\n', r"line 1: mos.*image"),
        ("t.parquet", "not parquet", "can't be read as Parquet"),
    ):
        (tmp_path / name).write_text(content)
        refused(message, _read, tmp_path, name)
    refused("'up': which end is better", _read, tmp_path, _write(tmp_path, "csv"), direction="up")
    pq.write_table(pa.table({"image": [{"width": 3}], "mos": [1.0]}), tmp_path / "t.parquet")
    refused("column `image`: expected paths, or images as `datasets` stores them", _read, tmp_path, "t.parquet")
