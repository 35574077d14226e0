"""Whole folders of pairs: what they hold, resuming, workers, splits, decisions."""

import hashlib
import io
import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from datasets import DatasetDict, load_from_disk
from PIL import Image

import q_hawkeye_trl.pairs.chunks as chunks_module
from pair_sets import dataset, picture, png, save
from q_hawkeye_trl.data.degradations import degrade, pixel_hash, view_seed
from q_hawkeye_trl.data.folder import check_pair, check_rows, load_folder
from q_hawkeye_trl.pairs.decisions import append_decision
from q_hawkeye_trl.pairs.judge import JudgeSettings
from q_hawkeye_trl.pairs.making import PairMaker
from q_hawkeye_trl.pairs.pair_manifest import SCHEMA, PairKey, read_manifest
from q_hawkeye_trl.pairs.pair_run import make_pairs
from q_hawkeye_trl.pairs.pair_settings import PairSettings


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(chunks_module, "ROWS_PER_CHUNK", 4)


def make(data, out, workers=1, **settings):
    return make_pairs(data, out, PairSettings(**settings), workers=workers, progress=False)


def files_of(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def views_of(folder, split=None):
    data = load_from_disk(str(folder))
    rows = (data[split] if split else data).with_format("arrow")[:]
    return {
        row["image_id"]: row["degraded_image"] and row["degraded_image"]["bytes"]
        for row in rows.select(["image_id", "degraded_image"]).to_pylist()
    }


# --- what a folder holds ---


def test_rows_stay_intact_and_each_gets_the_view_that_its_line_describes(tmp_path):
    images = [picture(n) for n in range(10)]
    data = save(tmp_path / "data", dataset(images, reference=["r"] * 10))
    summary = make(data, tmp_path / "out", seed=5, degradations=["all@2", "jpeg@3+darken@2"])
    before, after = load_from_disk(str(data)), load_from_disk(str(tmp_path / "out"))
    assert after.column_names == [*before.column_names, "degraded_image"]
    columns = before.column_names
    assert after.select_columns(columns).with_format("arrow")[:] == before.with_format("arrow")[:]
    lines = read_manifest(tmp_path / "out").to_pylist()
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
        assert line["file_hash"] == hashlib.sha256(png(original)).hexdigest()
        difference = np.asarray(original, dtype=float) - np.asarray(expected, dtype=float)
        assert line["psnr"] == pytest.approx(10 * math.log10(255**2 / (difference**2).mean()), rel=1e-6)
        assert (line["width"], line["height"], line["mode"], line["orientation"]) == (64, 48, "RGB", 1)
    hashes = {
        row["image_id"]: png_bytes for row, png_bytes in zip(lines, views_of(tmp_path / "out").values(), strict=True)
    }
    for line in lines:
        assert line["degraded_file_hash"] == hashlib.sha256(hashes[line["image_id"]]).hexdigest()


def test_the_folder_passes_the_trainers_checks(tmp_path):
    data = save(tmp_path / "data", dataset([picture(n) for n in range(5)]))
    make(data, tmp_path / "out")
    rows = load_folder(tmp_path / "out")
    check_rows(rows, score_min=1, score_max=5)
    assert rows[0]["prompt"]


def test_parameters_of_each_step_stand_in_the_manifest(tmp_path):
    data = save(tmp_path / "data", dataset([picture(0)]))
    make(data, tmp_path / "out", degradations=["motion_blur@4+gaussian_noise@2"])
    (line,) = read_manifest(tmp_path / "out").to_pylist()
    first, second = json.loads(line["parameters"])
    assert (first["kind"], first["level"], second["kind"], second["level"]) == ("motion_blur", 4, "gaussian_noise", 2)
    assert first["parameters"]["length"] == pytest.approx(1 + 0.048 * 48)
    assert 0 <= first["parameters"]["angle"] < 180
    assert second["parameters"] == {"std": 15}
    assert line["seed"] == 0


def test_the_card_counts_and_keeps_the_card_of_the_data(tmp_path):
    data = save(tmp_path / "data", dataset([picture(n) for n in range(3)]))
    (data / "README.md").write_text("# My photographs\n")
    make(data, tmp_path / "out", degradations=["darken"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| ok | 3 |" in card
    assert "| `darken` | 3 |" in card
    assert "> # My photographs" in card


def test_an_image_of_no_id_is_named_by_its_row(tmp_path):
    data = save(tmp_path / "data", dataset([picture(n) for n in range(3)], image_id=None, dataset=None))
    make(data, tmp_path / "out")
    lines = read_manifest(tmp_path / "out").to_pylist()
    assert [line["image_id"] for line in lines] == ["row-0", "row-1", "row-2"]
    assert {line["dataset"] for line in lines} == {None}


# --- the same pixels, whatever the way ---


def test_any_number_of_workers_gives_the_same_folder(tmp_path):
    data = save(
        tmp_path / "data", DatasetDict(train=dataset([picture(n) for n in range(13)]), test=dataset([picture(50)]))
    )
    make(data, tmp_path / "one", degradations=["all@1"])
    make(data, tmp_path / "two", degradations=["all@1"], workers=2)
    one, two = files_of(tmp_path / "one"), files_of(tmp_path / "two")
    assert one == two
    assert "train/data-00003-of-00004.arrow" in one
    assert (
        load_from_disk(str(tmp_path / "one"))["train"]._fingerprint != load_from_disk(str(data))["train"]._fingerprint
    )


def test_any_subset_in_any_order_gets_the_same_views(tmp_path):
    whole = dataset([picture(n) for n in range(9)])
    make(save(tmp_path / "data", whole), tmp_path / "out", seed=3)
    make(save(tmp_path / "some", whole.select([7, 2, 5])), tmp_path / "few", seed=3)
    make(tmp_path / "data", tmp_path / "first", seed=3, limit=2)
    every = views_of(tmp_path / "out")
    assert views_of(tmp_path / "few") == {name: every[name] for name in ("7.png", "2.png", "5.png")}
    assert views_of(tmp_path / "first") == {name: every[name] for name in ("0.png", "1.png")}
    make(tmp_path / "data", tmp_path / "other", seed=4)
    assert views_of(tmp_path / "other") != every


def test_the_same_pixels_in_another_container_get_the_same_view(tmp_path):
    image = picture(1)
    bmp = io.BytesIO()
    image.save(bmp, "BMP")
    image.save(tmp_path / "a.tiff")
    make(save(tmp_path / "data", dataset([image, bmp.getvalue(), tmp_path / "a.tiff"])), tmp_path / "out")
    assert len(set(views_of(tmp_path / "out").values())) == 1


def test_path_backed_images_stay_paths_and_their_files_as_they_are(tmp_path):
    files = [tmp_path / f"{n}.jpg" for n in range(3)]
    for n, file in enumerate(files):
        picture(n).save(file)
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    make(save(tmp_path / "data", dataset(files)), tmp_path / "out")
    stored = load_from_disk(str(tmp_path / "out")).with_format("arrow")[:].column("image").to_pylist()
    assert stored == [{"bytes": None, "path": str(file)} for file in files]
    assert [(file.read_bytes(), file.stat().st_mtime_ns) for file in files] == before


# --- resuming ---


class _Interrupted(Exception):
    pass


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    data = save(tmp_path / "data", dataset([picture(n) for n in range(14)]))
    make(data, tmp_path / "whole")
    original, made = PairMaker.make, []

    def stopping(self, row):
        if row.row == 10 and "stopped" not in made:
            made.append("stopped")
            raise _Interrupted
        made.append(row.row)
        return original(self, row)

    monkeypatch.setattr(PairMaker, "make", stopping)
    with pytest.raises(_Interrupted):
        make(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.partial").is_dir()
    summary = make(data, tmp_path / "out")
    assert made == [*range(10), "stopped", *range(8, 14)]  # two chunks of 4 were done
    assert summary.made == 6
    assert not (tmp_path / "out.partial").exists()
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_an_unfinished_run_with_other_settings_is_not_mixed_in(tmp_path, monkeypatch):
    data = save(tmp_path / "data", dataset([picture(n) for n in range(3)]))

    def failing(self, row):
        raise _Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(PairMaker, "make", failing)
        with pytest.raises(_Interrupted):
            make(data, tmp_path / "out")
    with pytest.raises(FileExistsError, match=r"unfinished run with other settings \(seed\)"):
        make(data, tmp_path / "out", seed=1)
    other = save(tmp_path / "other", dataset([picture(n) for n in range(4)]))
    with pytest.raises(FileExistsError, match=r"other settings \(data\)"):
        make(other, tmp_path / "out")
    assert make(data, tmp_path / "out").made == 3


def test_a_finished_folder_is_left_alone(tmp_path):
    data = save(tmp_path / "data", dataset([picture(n) for n in range(6)]))
    make(data, tmp_path / "out")
    before = files_of(tmp_path / "out")
    assert make(data, tmp_path / "out").made == 0
    assert files_of(tmp_path / "out") == before
    with pytest.raises(FileExistsError, match=r"pairs with other settings \(degradations\)"):
        make(data, tmp_path / "out", degradations=["jpeg@3"])


def test_a_second_run_only_tries_what_failed_and_ends_like_an_unbroken_one(tmp_path):
    files = [tmp_path / f"{n}.png" for n in range(14)]
    for n, file in enumerate(files):
        picture(n).save(file)
    data = save(tmp_path / "data", dataset(files))
    make(data, tmp_path / "whole")
    hidden = files[9].rename(tmp_path / "hidden.png")
    summary = make(data, tmp_path / "out")
    assert summary.verdicts == {"ok": 13, "error": 1}
    assert summary.unfinished == 1
    assert summary.problems[0][0] == "9.png"
    assert str(files[9]) in summary.problems[0][2]
    assert load_from_disk(str(tmp_path / "out")).with_format("arrow")[:].column("degraded_image")[9].as_py() is None
    assert make(data, tmp_path / "out").made == 4  # its chunk, in vain
    hidden.rename(files[9])
    old = load_from_disk(str(tmp_path / "out"))._fingerprint
    summary = make(data, tmp_path / "out")
    assert (summary.made, summary.unfinished) == (4, 0)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert load_from_disk(str(tmp_path / "out"))._fingerprint != old  # caches of `datasets` must not serve old rows


def test_only_chunks_of_failed_rows_are_tried_again(tmp_path):
    images = {name: [tmp_path / f"{name}{n}.png" for n in range(17)] for name in ("train", "test")}
    for n, file in enumerate(file for files in images.values() for file in files):
        picture(n, (24, 16)).save(file)
    for file in (images["train"][4], images["train"][7], images["train"][16], images["test"][3]):
        file.unlink()
    data = save(tmp_path / "data", DatasetDict({name: dataset(files) for name, files in images.items()}))
    assert make(data, tmp_path / "out", degradations=["darken"]).unfinished == 4
    assert make(data, tmp_path / "out", degradations=["darken"]).made == 4 + 1 + 4  # rows 4 to 7, 16, 0 to 3


def test_a_view_that_can_not_be_made_loses_one_pair_and_not_the_run(tmp_path):
    wide = np.zeros((2, 65_501, 3), np.uint8)  # one more than JPEG can hold
    data = save(tmp_path / "data", dataset([Image.fromarray(wide), picture(1)]))
    summary = make(data, tmp_path / "out", degradations=["jpeg"])
    assert summary.verdicts == {"ok": 1, "error": 1}
    assert "jpeg can't be applied to an image of 65501 x 2 pixels" in summary.problems[0][2]
    assert [view is None for view in views_of(tmp_path / "out").values()] == [True, False]
    (line, _) = read_manifest(tmp_path / "out").to_pylist()
    assert (line["width"], line["height"]) == (65_501, 2)
    # where only the second degradation fails the first view stays
    make(data, tmp_path / "second", degradations=["darken@1"], second=["jpeg"], mild_ssim=-1, mild_psnr=0)
    (line, other) = read_manifest(tmp_path / "second").to_pylist()
    assert (line["verdict"], line["operation"], line["kept"]) == ("too_mild", "darken@1", True)
    assert "jpeg can't be applied" in line["error"]
    assert other["operation"] == "darken@1+jpeg"


@pytest.mark.parametrize("moment", ["write_manifest", "_write_dataset_files", "card_text", "move_folder"])
def test_a_run_killed_while_it_finishes_goes_on(tmp_path, monkeypatch, moment):
    data = save(tmp_path / "data", dataset([picture(n) for n in range(6)]))
    make(data, tmp_path / "whole")
    calls = []

    def killed(*arguments):
        calls.append(arguments)
        raise _Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(f"q_hawkeye_trl.pairs.pair_run.{moment}", killed)
        with pytest.raises(_Interrupted):
            make(data, tmp_path / "out")
    assert len(calls) == 1
    assert not (tmp_path / "out").exists()
    assert make(data, tmp_path / "out").made == 0  # every chunk was done
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_second_run_killed_before_its_manifest_is_whole_goes_on(tmp_path, monkeypatch):
    files = [tmp_path / f"{n}.png" for n in range(6)]
    for n, file in enumerate(files):
        picture(n).save(file)
    data = save(tmp_path / "data", dataset(files))
    make(data, tmp_path / "whole")
    hidden = files[5].rename(tmp_path / "hidden.png")
    make(data, tmp_path / "out")
    hidden.rename(files[5])

    def killed(*arguments):
        raise _Interrupted

    with monkeypatch.context() as patch:
        patch.setattr("q_hawkeye_trl.pairs.pair_run.write_manifest", killed)
        with pytest.raises(_Interrupted):
            make(data, tmp_path / "out")
    assert views_of(tmp_path / "out")["5.png"]  # the chunk is there, though the manifest does not know it yet
    make(data, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    data = save(tmp_path / "data", dataset([picture(0)]))
    make(data, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "out")
    (tmp_path / "out" / ".data-00000-of-00001.arrow.77.partial").write_bytes(b"half")
    (tmp_path / "out.partial" / "parts").mkdir(parents=True)
    make(data, tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


# --- splits ---


def test_only_the_named_splits_get_pairs(tmp_path):
    data = save(tmp_path / "data", DatasetDict(train=dataset([picture(0)]), test=dataset([picture(1), picture(2)], 5)))
    summary = make(data, tmp_path / "out", splits=["train"])
    assert summary.verdicts == {"none": 2, "ok": 1}
    assert views_of(tmp_path / "out", "test") == {"5.png": None, "6.png": None}
    assert views_of(tmp_path / "out", "train")["0.png"]
    with pytest.raises(ValueError, match="no split dev; its splits are train, test"):
        make(data, tmp_path / "new", splits=["dev"])
    single = save(tmp_path / "single", dataset([picture(0)]))
    with pytest.raises(ValueError, match="no splits"):
        make(single, tmp_path / "new", splits=["train"])


def test_an_empty_split_stays(tmp_path):
    data = save(tmp_path / "data", DatasetDict(train=dataset([picture(0)]), test=dataset([picture(1)]).select([])))
    make(data, tmp_path / "out")
    assert {name: len(split) for name, split in load_from_disk(str(tmp_path / "out")).items()} == {
        "train": 1,
        "test": 0,
    }


# --- people's decisions ---


@pytest.fixture
def reviewed(tmp_path):
    """Pairs of six images; people rejected the second and accepted the third."""
    data = save(tmp_path / "data", dataset([picture(n) for n in range(6)]))
    make(data, tmp_path / "pairs", degradations=["jpeg@3", "darken@2"])
    lines = read_manifest(tmp_path / "pairs").to_pylist()
    keys = [PairKey(line["pixel_hash"], line["degraded_pixel_hash"]) for line in lines]
    file = tmp_path / "decisions.jsonl"
    append_decision(file, keys[1], "accept")
    append_decision(file, keys[1], "reject")
    append_decision(file, keys[2], "accept")
    append_decision(file, keys[3], "reject")
    append_decision(file, keys[3], "undo")
    return data, tmp_path / "pairs", file


def test_rejected_pairs_lose_their_view_and_all_others_stay(reviewed, tmp_path):
    _, pairs, file = reviewed
    summary = make(pairs, tmp_path / "out", decisions=file)
    before, after = views_of(pairs), views_of(tmp_path / "out")
    assert after == {**before, "1.png": None}
    assert summary.verdicts == {"ok": 4, "rejected": 1, "accepted": 1}
    assert summary.unused_decisions == 0
    line = read_manifest(tmp_path / "out").to_pylist()[1]
    assert (line["kept"], line["decision"], line["degraded_file_hash"]) == (False, "reject", None)
    own_card = (tmp_path / "out" / "README.md").read_text().split("## Source data")[0]
    assert "| rejected | drop |" in own_card
    assert "| degradations |" not in own_card  # the settings' defaults, which made none of these pairs
    assert "> | degradations | jpeg@3, darken@2 |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("start", ["pairs", "data"])
def test_rejected_pairs_are_strengthened_by_another_kind(reviewed, tmp_path, start):
    data, pairs, file = reviewed
    source, degradations = (pairs, ["release"]) if start == "pairs" else (data, ["jpeg@3", "darken@2"])
    summary = make(
        source,
        tmp_path / "out",
        decisions=file,
        rejected="strengthen",
        degradations=degradations,
        second=["gaussian_blur@4", "gaussian_noise@4"],
    )
    before, after = views_of(pairs), views_of(tmp_path / "out")
    assert {name for name in before if before[name] != after[name]} == {"1.png"}
    old, new = (read_manifest(folder).to_pylist()[1] for folder in (pairs, tmp_path / "out"))
    assert new["operation"].startswith(old["operation"] + "+gaussian_")
    assert (new["first_operation"], new["first_reason"], new["stage"]) == (old["operation"], "person", "strengthened")
    assert (new["first_ssim"], new["first_psnr"]) == (old["ssim"], old["psnr"])
    expected = degrade(picture(1), new["operation"], new["view_seed"])
    assert Image.open(io.BytesIO(after["1.png"])).tobytes() == expected.tobytes()
    assert summary.strengthened == 1
    assert summary.unused_decisions == 0
    # and what people say about the stronger pair counts as well
    append_decision(file, PairKey(new["pixel_hash"], new["degraded_pixel_hash"]), "reject")
    make(tmp_path / "out", tmp_path / "again", decisions=file, rejected="strengthen")
    assert views_of(tmp_path / "again")["1.png"] is None


def test_decisions_about_other_pairs_are_counted(reviewed, tmp_path):
    data, _, file = reviewed
    assert make(data, tmp_path / "out", decisions=file, seed=9).unused_decisions == 2


def test_an_original_that_changed_is_not_paired_with_the_old_decision(tmp_path):
    picture(0).save(tmp_path / "a.png")
    data = save(tmp_path / "data", dataset([tmp_path / "a.png"]))
    make(data, tmp_path / "pairs", degradations=["jpeg@3"])
    (line,) = read_manifest(tmp_path / "pairs").to_pylist()
    append_decision(tmp_path / "d", PairKey(line["pixel_hash"], line["degraded_pixel_hash"]), "reject")
    picture(1).save(tmp_path / "a.png")
    summary = make(tmp_path / "pairs", tmp_path / "out", decisions=tmp_path / "d", rejected="strengthen")
    assert summary.verdicts == {"error": 1}
    assert "original has changed" in summary.problems[0][2]


# --- refusals ---


def test_nothing_is_overwritten(tmp_path):
    data = save(tmp_path / "data", dataset([picture(0)]))
    with pytest.raises(ValueError, match="only read"):
        make(data, data)
    (tmp_path / "link").symlink_to(data)
    with pytest.raises(ValueError, match="only read"):
        make(data, tmp_path / "link")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("precious")
    with pytest.raises(FileExistsError, match="taken exists and holds no pairs"):
        make(data, tmp_path / "taken")
    (tmp_path / "file").write_text("precious")
    with pytest.raises(FileExistsError, match="holds no pairs"):
        make(data, tmp_path / "file")
    assert (tmp_path / "taken" / "thesis.tex").read_text() == (tmp_path / "file").read_text() == "precious"
    make(data, tmp_path / "pairs")
    with pytest.raises(ValueError, match="degraded_image"):
        make(tmp_path / "pairs", tmp_path / "again")
    with pytest.raises(ValueError, match="data"):
        make(data, data / "pairs")
    (tmp_path / "empty").mkdir()
    make(data, tmp_path / "empty")
    assert views_of(tmp_path / "empty")


def test_a_limit_does_not_hide_that_the_data_are_others(tmp_path):
    for name, first in (("a", 0), ("b", 10)):
        save(tmp_path / name, dataset([picture(n) for n in range(first, first + 3)]))
    make(tmp_path / "a", tmp_path / "out", limit=2)
    assert make(tmp_path / "a", tmp_path / "out", limit=2).made == 0
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "b").rename(tmp_path / "a")
    with pytest.raises(FileExistsError, match=r"other settings \(data\)"):
        make(tmp_path / "a", tmp_path / "out", limit=2)


def test_a_broken_record_is_named(tmp_path):
    data = save(tmp_path / "data", dataset([picture(0)]))
    make(data, tmp_path / "out")
    for text in ("{", "[]", "{}"):
        (tmp_path / "out" / "pairs.json").write_text(text)
        with pytest.raises(FileExistsError, match=r"pairs\.json can't be read"):
            make(data, tmp_path / "out")


def test_two_runs_do_not_write_to_one_folder(tmp_path):
    data = save(tmp_path / "data", dataset([picture(n) for n in range(3)]))
    make(data, tmp_path / "out")
    code = (
        "import fcntl, os, sys; fd = os.open(sys.argv[1], os.O_RDONLY); fcntl.flock(fd, fcntl.LOCK_EX);"
        "print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(BlockingIOError, match="Another run is writing to"):
            make(data, tmp_path / "out")
        other.communicate("")
    assert make(data, tmp_path / "out").made == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_wrong_for_every_worker_is_told(tmp_path, workers):
    data = save(tmp_path / "data", dataset([picture(n) for n in range(9)]))
    (tmp_path / "decisions.jsonl").write_text("no json\n")
    with pytest.raises(ValueError, match=r"decisions\.jsonl, line 1: expected a JSON object"):
        make(data, tmp_path / "out", workers, decisions=tmp_path / "decisions.jsonl")
    with pytest.raises(OSError, match="nowhere/judge"):
        make(data, tmp_path / "other", workers, judge=JudgeSettings("nowhere/judge"))


def test_data_that_are_no_rows_of_images_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        make(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty can't be read"):
        make(tmp_path / "empty", tmp_path / "out")
    dataset([picture(0)]).remove_columns("image").save_to_disk(tmp_path / "text")
    with pytest.raises(ValueError, match="expected a column `image`"):
        make(tmp_path / "text", tmp_path / "out")
    save(tmp_path / "none", dataset([picture(0)]).select([]))
    with pytest.raises(ValueError, match="has no rows"):
        make(tmp_path / "none", tmp_path / "out")
    with pytest.raises(ValueError, match="workers is 0"):
        make(save(tmp_path / "data", dataset([picture(0)])), tmp_path / "out", workers=0)
    assert not (tmp_path / "out").exists()
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
