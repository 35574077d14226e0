"""The four stages of one pair, and its settings."""

import math

import numpy as np
import pytest
from PIL import Image

from pair_sets import picture, png
from q_hawkeye_trl.data.degradations import degrade, degraded_view, pixel_hash, view_seed
from q_hawkeye_trl.pairs.judge import JudgeError, Verdict
from q_hawkeye_trl.pairs.making import PairMaker, SourceRow
from q_hawkeye_trl.pairs.pair_manifest import PairKey
from q_hawkeye_trl.pairs.pair_settings import PairSettings


def made(image=None, judge=None, decisions=None, **settings):
    row = SourceRow("train", 7, "a.png", "koniq10k", {"bytes": png(image or picture(0)), "path": None})
    return PairMaker(PairSettings(**settings), judge, None, decisions).make(row)


def test_a_visible_pair_is_done_after_two_stages():
    pair = made(degradations=["jpeg@5"])
    assert (pair.record["stage"], pair.record["verdict"], pair.record["operation"]) == ("once", "ok", "jpeg@5")
    assert pair.record["first_operation"] is None
    assert (pair.record["split"], pair.record["row"], pair.record["image_id"]) == ("train", 7, "a.png")


def test_a_pair_is_the_view_that_the_trainer_makes_in_its_first_epoch():
    names = ["jpeg@5", "gaussian_noise@4", "darken@4"]
    for n in range(4):
        record = made(picture(n), degradations=names, seed=6).record
        view, name = degraded_view(picture(n), names, degradation_seed=6, epoch=0)
        assert (record["operation"], record["degraded_pixel_hash"]) == (name, pixel_hash(view))


def test_a_mild_pair_gets_a_second_kind_on_top_of_the_first():
    image = picture(0)
    pair = made(
        image, degradations=["gaussian_blur@1"], mild_ssim=0.9, mild_psnr=20, second=["gaussian_blur@5", "darken@3"]
    )
    record = pair.record
    assert record["operation"] == "gaussian_blur@1+darken@3"  # never the same kind twice
    assert record["first_operation"] == "gaussian_blur@1"
    assert record["first_reason"] == "distance"
    assert (record["stage"], record["verdict"]) == ("strengthened", "ok")
    assert record["first_ssim"] > 0.9 > record["ssim"]
    assert record["view_seed"] == view_seed(0, pixel_hash(image), 0)
    assert record["degraded_pixel_hash"] == pixel_hash(degrade(image, record["operation"], record["view_seed"]))


def test_too_mild_needs_both_distances():
    for ssim, psnr, stage in ((-1, 0, "strengthened"), (2, 0, "once"), (-1, math.inf, "once")):
        record = made(degradations=["jpeg@3"], mild_ssim=ssim, mild_psnr=psnr).record
        assert record["stage"] == stage


def test_what_is_still_too_mild_is_marked_and_left_out_on_request():
    always = {"mild_ssim": -1, "mild_psnr": 0}
    pair = made(degradations=["jpeg@3"], **always)
    assert (pair.record["verdict"], pair.record["stage"], pair.record["kept"]) == ("too_mild", "strengthened", True)
    assert pair.png is not None
    pair = made(degradations=["jpeg@3"], drop_mild=True, **always)
    assert (pair.png, pair.record["kept"], pair.record["degraded_file_hash"]) == (None, False, None)
    pair = made(degradations=["jpeg@3"], second=[], **always)
    assert (pair.record["verdict"], pair.record["stage"]) == ("too_mild", "once")
    pair = made(degradations=["jpeg@3+darken@1"], **always)  # two kinds already
    assert (pair.record["verdict"], pair.record["stage"]) == ("too_mild", "once")


def test_an_image_that_a_kind_does_not_change_is_too_mild():
    grey = picture(0).convert("L").convert("RGB")
    record = made(grey, degradations=["saturation@5"]).record
    assert record["first_psnr"] == math.inf
    assert record["stage"] == "strengthened"
    black = Image.new("RGB", (40, 30))
    record = made(black, degradations=["darken@5"], second=["gaussian_blur@5"]).record
    assert (record["verdict"], record["psnr"]) == ("too_mild", math.inf)


def test_a_judges_failure_keeps_the_pair():
    def judge(original, view):
        raise JudgeError("out of order")

    pair = made(judge=judge, degradations=["jpeg@5"])
    assert (pair.record["verdict"], pair.record["error"]) == ("unjudged", "out of order")
    assert pair.png is not None


def test_the_judge_sees_original_and_view_at_full_size():
    seen = []

    def judge(original, view):
        seen.append((original, view))
        return Verdict(True, "different")

    record = made(picture(2), judge, degradations=["jpeg@5"]).record
    ((original, view),) = seen
    assert pixel_hash(original) == record["pixel_hash"]
    assert pixel_hash(view) == record["degraded_pixel_hash"]


def test_a_person_overrides_distance_and_judge():
    mild = {"degradations": ["jpeg@3"], "mild_ssim": -1.0, "mild_psnr": 0.0, "second": []}
    record = made(**mild).record
    key = PairKey(record["pixel_hash"], record["degraded_pixel_hash"])
    pair = made(decisions={key: "accept"}, drop_mild=True, **mild)
    assert (pair.record["verdict"], pair.record["decision"]) == ("accepted", "accept")
    assert pair.png is not None
    pair = made(decisions={key: "reject"}, rejected="strengthen", **mild)
    assert (pair.png, pair.record["verdict"]) == (None, "rejected")  # there is nothing to strengthen it by


def test_the_global_generators_are_left_alone():
    import random

    before = random.getstate(), np.random.get_state()[1].tobytes()
    made(degradations=["all@2"])
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == before


BAD = [
    ({"degradations": ["fog"]}, "Unknown degradation 'fog'"),
    ({"degradations": []}, "at least one"),
    ({"second": ["jpeg@2+darken@2"]}, "jpeg@2.darken@2"),
    ({"degradations": ["jpeg@2"], "second": ["jpeg@5"]}, "jpeg@2"),
    ({"seed": -1}, "seed is -1"),
    ({"limit": 0}, "limit is 0"),
    ({"mild_ssim": math.nan}, "mild_ssim"),
    ({"rejected": "burn"}, "drop, strengthen"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PairSettings(**settings)


def test_a_missing_file_of_decisions_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        PairSettings(decisions=tmp_path / "nowhere")


def test_jpeg_2000_is_refused_before_any_work_where_pillow_lacks_it(monkeypatch):
    monkeypatch.setattr("PIL.features.check", lambda name: False)
    with pytest.raises(ValueError, match="OpenJPEG"):
        PairSettings(degradations=["all@3"])
