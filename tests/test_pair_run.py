"""Folders of pairs: their content, resuming, workers, splits, decisions, refusals."""

import hashlib
import io
import json
import math
import shutil
import subprocess
import sys
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
from datasets import DatasetDict, load_from_disk
from PIL import Image

import q_hawkeye_trl.pairs.chunks as chunks_module
from pair_sets import dataset, encoded, files_of, lines_of, make, picture, save, saved, views_of
from q_hawkeye_trl.data.degradations import degrade, pixel_hash, view_seed
from q_hawkeye_trl.data.folder import check_pair
from q_hawkeye_trl.pairs.decisions import append_decision
from q_hawkeye_trl.pairs.judge import JudgeSettings
from q_hawkeye_trl.pairs.making import PairMaker
from q_hawkeye_trl.pairs.pair_manifest import SCHEMA, PairKey


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(chunks_module, "ROWS_PER_CHUNK", 4)


# --- content of a folder ---


def test_rows_stay_intact_and_each_gets_the_view_that_its_line_describes(tmp_path):
    images = [picture(n) for n in range(10)]
    data = save(tmp_path / "data", dataset(images, reference=["r"] * 10))
    summary = make(data, tmp_path / "out", seed=5, degradations=["all@2", "jpeg@3+darken@2"])
    before, after = load_from_disk(str(data)), load_from_disk(str(tmp_path / "out"))
    columns = before.column_names
    assert after.column_names == [*columns, "degraded_image"]
    assert after.select_columns(columns).with_format("arrow")[:] == before.with_format("arrow")[:]
    lines, views = lines_of(tmp_path / "out"), views_of(tmp_path / "out")
    assert list(lines[0]) == SCHEMA.names
    assert [line["row"] for line in lines] == list(range(10))
    assert summary.rows == summary.made == 10
    for line, row, original in zip(lines, after, images, strict=True):
        check_pair(original, row["degraded_image"], line["image_id"])
        assert line["view_seed"] == view_seed(5, pixel_hash(original), 0)
        expected = degrade(original, line["operation"], line["view_seed"])
        assert row["degraded_image"].format == "PNG"
        assert row["degraded_image"].tobytes() == expected.tobytes()
        assert line["pixel_hash"] == pixel_hash(original)
        assert line["degraded_pixel_hash"] == pixel_hash(expected)
        assert line["file_hash"] == hashlib.sha256(encoded(original)).hexdigest()
        assert line["degraded_file_hash"] == hashlib.sha256(views[line["image_id"]]).hexdigest()
        difference = np.asarray(original, dtype=float) - np.asarray(expected, dtype=float)
        assert line["psnr"] == pytest.approx(10 * math.log10(255**2 / (difference**2).mean()), rel=1e-6)
        assert (line["width"], line["height"], line["mode"], line["orientation"]) == (64, 48, "RGB", 1)


def test_the_manifest_has_the_parameters_of_each_step(tmp_path):
    make(save(tmp_path / "data", dataset(1)), tmp_path / "out", degradations=["motion_blur@4+gaussian_noise@2"])
    (line,) = lines_of(tmp_path / "out")
    first, second = json.loads(line["parameters"])
    assert (first["kind"], first["level"], second["kind"], second["level"]) == ("motion_blur", 4, "gaussian_noise", 2)
    assert first["parameters"]["length"] == pytest.approx(1 + 0.048 * 48)
    assert 0 <= first["parameters"]["angle"] < 180
    assert second["parameters"] == {"std": 15}
    assert line["seed"] == 0


def test_the_card_counts_and_quotes_the_card_of_the_data(tmp_path):
    data = save(tmp_path / "data", dataset(3))
    (data / "README.md").write_text("# My photographs\n")
    make(data, tmp_path / "out", degradations=["darken"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| ok | 3 |" in card
    assert "| `darken` | 3 |" in card
    assert "> # My photographs" in card


def test_a_row_without_an_id_is_named_by_its_number(tmp_path):
    make(save(tmp_path / "data", dataset(2, image_id=None, dataset=None)), tmp_path / "out")
    lines = lines_of(tmp_path / "out")
    assert [(line["image_id"], line["dataset"]) for line in lines] == [("row-0", None), ("row-1", None)]


# --- the same pixels in every way ---


def test_any_number_of_workers_gives_the_same_folder(tmp_path):
    data = save(tmp_path / "data", DatasetDict(train=dataset(13), test=dataset(1, 50)))
    make(data, tmp_path / "one", degradations=["all@1"])
    make(data, tmp_path / "two", degradations=["all@1"], workers=2)
    one = files_of(tmp_path / "one")
    assert one == files_of(tmp_path / "two")
    assert "train/data-00003-of-00004.arrow" in one


def test_any_subset_in_any_order_gets_the_same_views(tmp_path):
    rows = dataset(9)
    make(save(tmp_path / "data", rows), tmp_path / "out", seed=3)
    make(save(tmp_path / "some", rows.select([7, 2, 5])), tmp_path / "few", seed=3)
    make(tmp_path / "data", tmp_path / "first", seed=3, limit=2)
    every = views_of(tmp_path / "out")
    assert views_of(tmp_path / "few") == {name: every[name] for name in ("7.png", "2.png", "5.png")}
    assert views_of(tmp_path / "first") == {name: every[name] for name in ("0.png", "1.png")}
    make(tmp_path / "data", tmp_path / "other", seed=4)
    assert views_of(tmp_path / "other") != every


def test_the_same_pixels_in_another_container_get_the_same_view(tmp_path):
    picture(1).save(tmp_path / "a.tiff")
    images = [picture(1), encoded(picture(1), "BMP"), tmp_path / "a.tiff"]
    make(save(tmp_path / "data", dataset(images)), tmp_path / "out")
    assert len(set(views_of(tmp_path / "out").values())) == 1


def test_path_backed_images_stay_paths_and_their_files_untouched(tmp_path):
    files = saved(tmp_path / "images", range(3))
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    make(save(tmp_path / "data", dataset(files)), tmp_path / "out")
    stored = load_from_disk(str(tmp_path / "out")).with_format("arrow")[:].column("image").to_pylist()
    assert stored == [{"bytes": None, "path": str(file)} for file in files]
    assert [(file.read_bytes(), file.stat().st_mtime_ns) for file in files] == before


# --- resuming ---


@contextmanager
def interrupted(monkeypatch, function):
    """Interrupt a run where it calls a function of the package."""

    def interrupt(*arguments, **options):
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(f"q_hawkeye_trl.pairs.{function}", interrupt)
        with pytest.raises(InterruptedError):
            yield


def test_an_interrupted_run_resumes_at_its_chunk(tmp_path, monkeypatch):
    data = save(tmp_path / "data", dataset(14))
    make(data, tmp_path / "reference")
    original, made = PairMaker.make, []

    def stopping(self, row):
        if row.row == 10 and "stopped" not in made:
            made.append("stopped")
            raise InterruptedError
        made.append(row.row)
        return original(self, row)

    monkeypatch.setattr(PairMaker, "make", stopping)
    with pytest.raises(InterruptedError):
        make(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert make(data, tmp_path / "out").made == 6
    assert made == [*range(10), "stopped", *range(8, 14)]  # two chunks of 4 were done
    assert not (tmp_path / "out.partial").exists()
    assert files_of(tmp_path / "out") == files_of(tmp_path / "reference")


@pytest.mark.parametrize("is_finished", [False, True])
def test_a_run_with_other_settings_or_data_is_refused(tmp_path, monkeypatch, is_finished):
    data, out = save(tmp_path / "data", dataset(4)), tmp_path / "out"
    with nullcontext() if is_finished else interrupted(monkeypatch, "making.PairMaker.make"):
        make(data, out, limit=3)
    before = files_of(out)
    for settings in ({"seed": 1}, {"degradations": ["jpeg@3"]}, {"limit": 4}):
        with pytest.raises(FileExistsError, match=f"out.*{next(iter(settings))}"):
            make(data, out, **{"limit": 3, **settings})
    assert files_of(out) == before
    assert make(data, out, limit=3).made == (0 if is_finished else 3)
    assert not is_finished or files_of(out) == before
    shutil.rmtree(data)
    with pytest.raises(FileExistsError, match=r"out.*data"):
        make(save(data, dataset(4, 10)), out, limit=3)


def test_a_second_run_only_retries_what_failed_and_ends_as_an_uninterrupted_one(tmp_path):
    files = saved(tmp_path / "images", range(14))
    data = save(tmp_path / "data", dataset(files))
    make(data, tmp_path / "reference")
    hidden = files[9].rename(tmp_path / "hidden.png")
    summary = make(data, tmp_path / "out")
    assert summary.verdicts == {"ok": 13, "error": 1}
    assert summary.unfinished == 1
    assert summary.problems[0][0] == "9.png"
    assert str(files[9]) in summary.problems[0][2]
    assert views_of(tmp_path / "out")["9.png"] is None
    assert make(data, tmp_path / "out").made == 4  # its chunk, in vain
    hidden.rename(files[9])
    old = load_from_disk(str(tmp_path / "out"))._fingerprint
    summary = make(data, tmp_path / "out")
    assert (summary.made, summary.unfinished) == (4, 0)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "reference")
    assert load_from_disk(str(tmp_path / "out"))._fingerprint != old  # caches of `datasets` must not serve old rows


def test_only_chunks_with_failed_rows_are_retried(tmp_path):
    images = {name: saved(tmp_path / name, range(first, first + 17)) for name, first in (("train", 0), ("test", 17))}
    for file in (images["train"][4], images["train"][7], images["train"][16], images["test"][3]):
        file.unlink()
    data = save(tmp_path / "data", DatasetDict({name: dataset(files) for name, files in images.items()}))
    assert make(data, tmp_path / "out", degradations=["darken"]).unfinished == 4
    assert make(data, tmp_path / "out", degradations=["darken"]).made == 4 + 1 + 4  # rows 4 to 7, 16, 0 to 3


def test_a_view_that_can_not_be_made_loses_one_pair_and_not_the_run(tmp_path):
    wide = np.zeros((2, 65_501, 3), np.uint8)  # one pixel more than JPEG can hold
    data = save(tmp_path / "data", dataset([Image.fromarray(wide), picture(1)]))
    summary = make(data, tmp_path / "out", degradations=["jpeg"])
    assert summary.verdicts == {"ok": 1, "error": 1}
    assert "jpeg can't be applied to an image of 65501 x 2 pixels" in summary.problems[0][2]
    assert [view is None for view in views_of(tmp_path / "out").values()] == [True, False]
    (line, _) = lines_of(tmp_path / "out")
    assert (line["width"], line["height"]) == (65_501, 2)
    # if only the second degradation fails, the first view stays
    make(data, tmp_path / "second", degradations=["darken@1"], second=["jpeg"], mild_ssim=-1, mild_psnr=0)
    (line, other) = lines_of(tmp_path / "second")
    assert (line["verdict"], line["operation"], line["kept"]) == ("too_mild", "darken@1", True)
    assert "jpeg can't be applied" in line["error"]
    assert other["operation"] == "darken@1+jpeg"


@pytest.mark.parametrize("moment", ["write_manifest", "write_split_files", "card_text", "move_folder"])
def test_a_run_killed_while_it_finishes_resumes(tmp_path, monkeypatch, moment):
    data = save(tmp_path / "data", dataset(6))
    make(data, tmp_path / "reference")
    with interrupted(monkeypatch, f"pair_run.{moment}"):
        make(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert make(data, tmp_path / "out").made == 0  # every chunk was done
    assert files_of(tmp_path / "out") == files_of(tmp_path / "reference")


def test_a_second_run_killed_before_its_manifest_is_complete_resumes(tmp_path, monkeypatch):
    files = saved(tmp_path / "images", range(6))
    data = save(tmp_path / "data", dataset(files))
    make(data, tmp_path / "reference")
    hidden = files[5].rename(tmp_path / "hidden.png")
    make(data, tmp_path / "out")
    hidden.rename(files[5])
    with interrupted(monkeypatch, "pair_run.write_manifest"):
        make(data, tmp_path / "out")
    assert views_of(tmp_path / "out")["5.png"]  # the chunk is there, though not in the manifest yet
    make(data, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "reference")


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    data = save(tmp_path / "data", dataset(1))
    make(data, tmp_path / "reference")
    shutil.copytree(tmp_path / "reference", tmp_path / "out")
    (tmp_path / "out" / ".data-00000-of-00001.arrow.77.partial").write_bytes(b"half")
    (tmp_path / "out.partial" / "parts").mkdir(parents=True)  # killed after publishing
    make(data, tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()
    assert files_of(tmp_path / "out") == files_of(tmp_path / "reference")


# --- splits ---


def test_only_the_named_splits_get_pairs(tmp_path):
    data = save(tmp_path / "data", DatasetDict(train=dataset(1), test=dataset(2, 5)))
    summary = make(data, tmp_path / "out", splits=["train"])
    assert summary.verdicts == {"none": 2, "ok": 1}
    assert views_of(tmp_path / "out", "test") == {"5.png": None, "6.png": None}
    assert views_of(tmp_path / "out", "train")["0.png"]
    with pytest.raises(ValueError, match=r"dev.*train, test"):
        make(data, tmp_path / "new", splits=["dev"])
    single = save(tmp_path / "single", dataset(1))
    with pytest.raises(ValueError, match="no splits"):
        make(single, tmp_path / "new", splits=["train"])


def test_an_empty_split_stays(tmp_path):
    data = save(tmp_path / "data", DatasetDict(train=dataset(1), test=dataset(1).select([])))
    make(data, tmp_path / "out")
    assert load_from_disk(str(tmp_path / "out")).num_rows == {"train": 1, "test": 0}


# --- people's decisions ---


@pytest.fixture
def reviewed(tmp_path):
    """Pairs of six images; people rejected the second and accepted the third."""
    data = save(tmp_path / "data", dataset(6))
    make(data, tmp_path / "pairs", degradations=["jpeg@3", "darken@2"])
    keys, file = [PairKey.of(line) for line in lines_of(tmp_path / "pairs")], tmp_path / "decisions.jsonl"
    for number, decision in ((1, "accept"), (1, "reject"), (2, "accept"), (3, "reject"), (3, "undo")):
        append_decision(file, keys[number], decision)
    return data, tmp_path / "pairs", file


def test_rejected_pairs_lose_their_view_and_all_others_stay(reviewed, tmp_path):
    _, pairs, file = reviewed
    summary = make(pairs, tmp_path / "out", decisions=file)
    assert views_of(tmp_path / "out") == {**views_of(pairs), "1.png": None}
    assert summary.verdicts == {"ok": 4, "rejected": 1, "accepted": 1}
    assert summary.unused_decisions == 0
    line = lines_of(tmp_path / "out")[1]
    assert (line["kept"], line["decision"], line["degraded_file_hash"]) == (False, "reject", None)
    own_card, source_card = (tmp_path / "out" / "README.md").read_text().split("## Source data")
    assert "| rejected | drop |" in own_card
    assert "| degradations |" not in own_card  # the defaults of this run, which made none of these pairs
    assert "> | degradations | jpeg@3, darken@2 |" in source_card


@pytest.mark.parametrize("start", ["pairs", "data"])
def test_rejected_pairs_are_strengthened_by_another_kind(reviewed, tmp_path, start):
    data, pairs, file = reviewed
    source, degradations = (pairs, ["release"]) if start == "pairs" else (data, ["jpeg@3", "darken@2"])
    settings = {"degradations": degradations, "second": ["gaussian_blur@4", "gaussian_noise@4"]}
    summary = make(source, tmp_path / "out", decisions=file, rejected="strengthen", **settings)
    before, after = views_of(pairs), views_of(tmp_path / "out")
    assert {name for name in before if before[name] != after[name]} == {"1.png"}
    old, new = (lines_of(folder)[1] for folder in (pairs, tmp_path / "out"))
    assert new["operation"].startswith(old["operation"] + "+gaussian_")
    assert (new["first_operation"], new["first_reason"], new["stage"]) == (old["operation"], "person", "strengthened")
    assert (new["first_ssim"], new["first_psnr"]) == (old["ssim"], old["psnr"])
    expected = degrade(picture(1), new["operation"], new["view_seed"])
    assert Image.open(io.BytesIO(after["1.png"])).tobytes() == expected.tobytes()
    assert (summary.strengthened, summary.unused_decisions) == (1, 0)
    # decisions about the stronger pair count as well
    append_decision(file, PairKey.of(new), "reject")
    make(tmp_path / "out", tmp_path / "again", decisions=file, rejected="strengthen")
    assert views_of(tmp_path / "again")["1.png"] is None


def test_decisions_about_other_pairs_are_counted(reviewed, tmp_path):
    data, _, file = reviewed
    assert make(data, tmp_path / "out", decisions=file, seed=9).unused_decisions == 2


def test_a_decision_does_not_apply_to_an_original_that_changed(tmp_path):
    (file,) = saved(tmp_path / "images", range(1))
    make(save(tmp_path / "data", dataset([file])), tmp_path / "pairs", degradations=["jpeg@3"])
    (line,) = lines_of(tmp_path / "pairs")
    append_decision(tmp_path / "d", PairKey.of(line), "reject")
    picture(1).save(file)
    summary = make(tmp_path / "pairs", tmp_path / "out", decisions=tmp_path / "d", rejected="strengthen")
    assert summary.verdicts == {"error": 1}
    assert "original has changed" in summary.problems[0][2]


# --- refusals ---


def test_nothing_is_overwritten(tmp_path):
    data = save(tmp_path / "data", dataset(1))
    (tmp_path / "link").symlink_to(data)
    for out in (data, tmp_path / "link", data / "pairs"):
        with pytest.raises(ValueError, match=out.name):
            make(data, out)
    (tmp_path / "taken").mkdir()
    for name, precious in (("taken", "taken/thesis.tex"), ("file", "file")):
        (tmp_path / precious).write_text("precious")
        with pytest.raises(FileExistsError, match=name):
            make(data, tmp_path / name)
        assert (tmp_path / precious).read_text() == "precious"
    make(data, tmp_path / "pairs")
    with pytest.raises(ValueError, match="degraded_image"):
        make(tmp_path / "pairs", tmp_path / "again")
    (tmp_path / "empty").mkdir()
    make(data, tmp_path / "empty")
    assert views_of(tmp_path / "empty")


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_record_of_settings_is_named(tmp_path, text):
    data = save(tmp_path / "data", dataset(1))
    make(data, tmp_path / "out")
    (tmp_path / "out" / "pairs.json").write_text(text)
    with pytest.raises(FileExistsError, match=r"pairs\.json"):
        make(data, tmp_path / "out")


@pytest.mark.parametrize("is_new", [False, True])
def test_two_runs_do_not_write_to_one_folder(tmp_path, is_new):
    data, locked = save(tmp_path / "data", dataset(3)), tmp_path / "out"
    if is_new:
        (tmp_path / "out.partial").mkdir()
        locked = tmp_path / "out.partial" / "lock"
    else:
        make(data, tmp_path / "out")
    code = (
        "import sys; from q_hawkeye_trl.io.lock import locked\n"
        "with locked(sys.argv[1], busy=''): print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(locked)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(BlockingIOError, match="out"):
            make(data, tmp_path / "out")
        other.communicate("")
    assert make(data, tmp_path / "out").made == (3 if is_new else 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_that_concern_every_worker_are_raised(tmp_path, workers):
    data = save(tmp_path / "data", dataset(9))
    (tmp_path / "decisions.jsonl").write_text("no json\n")
    with pytest.raises(ValueError, match=r"decisions\.jsonl.*1"):
        make(data, tmp_path / "out", workers, decisions=tmp_path / "decisions.jsonl")
    with pytest.raises(OSError, match="nowhere/judge"):
        make(data, tmp_path / "other", workers, judge=JudgeSettings("nowhere/judge"))


def test_data_that_are_not_rows_of_images_are_refused_by_name(tmp_path):
    (tmp_path / "empty").mkdir()
    dataset(1).remove_columns("image").save_to_disk(tmp_path / "text")
    save(tmp_path / "none", dataset(1).select([]))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        make(tmp_path / "nowhere", tmp_path / "out")
    for name, message in (("empty", "can't be read"), ("text", "column `image`"), ("none", "no rows")):
        with pytest.raises(ValueError, match=f"{name}.*{message}"):
            make(tmp_path / name, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
