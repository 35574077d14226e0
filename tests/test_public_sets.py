"""The protocols, and the figures that are only quoted."""

import re

import pytest

from q_hawkeye_trl.evaluation.public_sets import PRESETS, WHOLE, departures, distortion_of, get_preset, published_rows


def test_protocols_differ_where_the_papers_do():
    expected = {"deqa": ("mos_raw", "plcc_fitted"), "pyiqa": ("mos_raw", "plcc"), "mr-iqa": ("mos", "plcc")}
    assert {name: (preset.target, preset.plcc) for name, preset in PRESETS.items()} == expected
    assert get_preset("deqa").splits["kadid10k"] == "test"
    assert get_preset("mr-iqa").splits["kadid10k"] == WHOLE
    assert len(get_preset("deqa").splits) == 8
    for preset in PRESETS.values():
        assert preset.splits["koniq10k"] == "test"
        assert set(preset.sizes) <= set(preset.splits)


def test_unknown_protocol():
    with pytest.raises(ValueError, match=r"'paper'.*deqa, pyiqa, mr-iqa"):
        get_preset("paper")


@pytest.mark.parametrize(
    ("preset", "dataset", "images", "said"),
    [
        ("deqa", "koniq10k", 2010, None),
        ("deqa", "koniq10k", 2015, "2010 .*2015"),
        ("pyiqa", "koniq10k", 2015, None),
        ("mr-iqa", "kadid10k", 10125, None),
        ("mr-iqa", "kadid10k", 2000, "10125 .*2000"),
        ("deqa", "mine", 10, "'mine'"),
    ],
)
def test_another_list_of_images_is_reported(preset, dataset, images, said):
    sentences = departures(get_preset(preset), dataset, images)
    assert bool(sentences) == bool(said)
    assert not said or re.search(said, sentences[0])


def test_published_figures():
    rows = {row.model: row for row in published_rows("koniq10k")}
    assert (rows["DeQA-Score"].plcc, rows["DeQA-Score"].srcc) == (0.953, 0.941)
    assert "Q-Hawkeye" not in rows
    (hawkeye,) = [row for row in published_rows("csiq") if row.model == "Q-Hawkeye"]
    assert (hawkeye.plcc, hawkeye.srcc) == (None, 0.806)
    assert published_rows("mine") == []
    for name in get_preset("deqa").splits:
        for row in published_rows(name):
            assert 0.4 < row.srcc < 1
            assert "arXiv" in row.source


@pytest.mark.parametrize(
    ("dataset", "name", "kind"),
    [
        ("kadid10k", "images/I81_10_03.png", "JPEG"),
        ("tid2013", "i03_08_5.bmp", "Gaussian blur"),
        ("csiq", "dst_imgs/awgn/1600.AWGN.1.png", "AWGN"),
        ("pipal", "A0001_02_11.bmp", "type 02"),
        ("kadid10k", "I81_99_03.png", "type 99"),
        ("koniq10k", "I81_10_03.png", ""),
        ("csiq", "1600.png", ""),
    ],
)
def test_kinds_of_distortion_are_read_off_names(dataset, name, kind):
    assert distortion_of(dataset, name) == kind
