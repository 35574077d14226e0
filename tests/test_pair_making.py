"""The stages of one pair, and its settings."""

import math
import random

import numpy as np
import pytest
from PIL import Image

from pair_sets import encoded, picture
from q_hawkeye_trl.data.degradations import degrade, degraded_views, pixel_hash, view_seed
from q_hawkeye_trl.pairs.judge import Verdict
from q_hawkeye_trl.pairs.making import PairMaker, SourceRow
from q_hawkeye_trl.pairs.pair_manifest import PairKey
from q_hawkeye_trl.pairs.pair_settings import PairSettings


def made(image=None, judge=None, decisions=None, **settings):
    """The line of the manifest of a pair, with its view as `png`."""
    row = SourceRow("train", 7, "a.png", "koniq10k", {"bytes": encoded(image or picture(0)), "path": None})
    png, record = PairMaker(PairSettings(**settings), judge, None, decisions).make(row)
    return {**record, "png": png}


ALWAYS = {"mild_ssim": -1, "mild_psnr": 0, "degradations": ["jpeg@3"]}  # every pair is too mild


def test_a_visible_pair_gets_one_degradation():
    pair = made(degradations=["jpeg@5"])
    assert (pair["stage"], pair["verdict"], pair["operation"]) == ("once", "ok", "jpeg@5")
    assert pair["first_operation"] is None
    assert (pair["split"], pair["row"], pair["image_id"]) == ("train", 7, "a.png")


def test_a_pair_is_the_view_that_the_trainer_makes_in_its_first_epoch():
    names = ["jpeg@5", "gaussian_noise@4", "darken@4"]
    for n in range(4):
        pair = made(picture(n), degradations=names, seed=6)
        (view,), name = degraded_views([picture(n)], names, degradation_seed=6, epoch=0)
        assert (pair["operation"], pair["degraded_pixel_hash"]) == (name, pixel_hash(view))


def test_a_mild_pair_gets_a_second_kind_on_top_of_the_first():
    second = ["gaussian_blur@5", "darken@3"]
    pair = made(degradations=["gaussian_blur@1"], mild_ssim=0.9, mild_psnr=20, second=second)
    assert pair["operation"] == "gaussian_blur@1+darken@3"  # never the same kind twice
    assert (pair["first_operation"], pair["first_reason"]) == ("gaussian_blur@1", "distance")
    assert (pair["stage"], pair["verdict"]) == ("strengthened", "ok")
    assert pair["first_ssim"] > 0.9 > pair["ssim"]
    assert pair["view_seed"] == view_seed(0, pixel_hash(picture(0)), 0)
    assert pair["degraded_pixel_hash"] == pixel_hash(degrade(picture(0), pair["operation"], pair["view_seed"]))


def test_too_mild_needs_both_distances():
    for ssim, psnr, stage in ((-1, 0, "strengthened"), (2, 0, "once"), (-1, math.inf, "once")):
        assert made(degradations=["jpeg@3"], mild_ssim=ssim, mild_psnr=psnr)["stage"] == stage


def test_what_is_still_too_mild_is_marked_and_dropped_on_request():
    pair = made(**ALWAYS)
    assert (pair["verdict"], pair["stage"], pair["kept"]) == ("too_mild", "strengthened", True)
    assert pair["png"] is not None
    pair = made(drop_mild=True, **ALWAYS)
    assert (pair["png"], pair["kept"], pair["degraded_file_hash"]) == (None, False, None)
    for settings in ({"second": []}, {"degradations": ["jpeg@3+darken@1"]}):  # nothing to add, or two kinds already
        pair = made(**{**ALWAYS, **settings})
        assert (pair["verdict"], pair["stage"]) == ("too_mild", "once")


def test_an_image_that_a_kind_does_not_change_is_too_mild():
    pair = made(picture(0).convert("L").convert("RGB"), degradations=["saturation@5"])
    assert (pair["first_psnr"], pair["stage"]) == (math.inf, "strengthened")
    pair = made(Image.new("RGB", (40, 30)), degradations=["darken@5"], second=["gaussian_blur@5"])
    assert (pair["verdict"], pair["psnr"]) == ("too_mild", math.inf)


def test_the_judge_sees_original_and_view_at_full_size():
    seen = []

    def judge(original, view):
        seen.append((pixel_hash(original), pixel_hash(view)))
        return Verdict(True, "different")

    pair = made(picture(2), judge, degradations=["jpeg@5"])
    assert seen == [PairKey.of(pair)]


def test_a_person_overrides_distance_and_judge():
    mild = {**ALWAYS, "second": []}
    key = PairKey.of(made(**mild))
    pair = made(decisions={key: "accept"}, drop_mild=True, **mild)
    assert (pair["verdict"], pair["decision"]) == ("accepted", "accept")
    assert pair["png"] is not None
    pair = made(decisions={key: "reject"}, rejected="strengthen", **mild)
    assert (pair["png"], pair["verdict"]) == (None, "rejected")  # there is no second degradation


def test_the_global_generators_are_left_alone():
    before = random.getstate(), np.random.get_state()[1].tobytes()
    made(degradations=["all@2"])
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == before


BAD = [
    ({"degradations": ["fog"]}, "fog"),
    ({"degradations": []}, "at least one"),
    ({"second": ["jpeg@2+darken@2"]}, r"second.*jpeg@2\+darken@2"),
    ({"degradations": ["jpeg@2"], "second": ["jpeg@5"]}, "second.*jpeg@2"),
    ({"seed": -1}, "seed is -1"),
    ({"limit": 0}, "limit is 0"),
    ({"mild_ssim": math.nan}, "mild_ssim"),
    ({"rejected": "burn"}, "burn.*drop, strengthen"),
    ({"decisions": "nowhere"}, "nowhere"),
]


@pytest.mark.parametrize(("settings", "named"), BAD)
def test_bad_settings_are_refused(settings, named):
    with pytest.raises((ValueError, FileNotFoundError), match=named):
        PairSettings(**settings)


def test_jpeg_2000_is_refused_before_any_work_if_pillow_lacks_it(monkeypatch):
    monkeypatch.setattr("PIL.features.check", lambda name: False)
    with pytest.raises(ValueError, match="OpenJPEG"):
        PairSettings(degradations=["all@3"])
