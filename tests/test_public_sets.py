"""The protocols, and the figures that are only quoted."""

import pytest

from q_hawkeye_trl.evaluation.public_sets import PRESETS, WHOLE, departures, get_preset, published_rows


def test_protocols_differ_where_the_papers_do():
    assert (get_preset("deqa").target, get_preset("deqa").plcc) == ("mos_raw", "plcc_fitted")
    assert (get_preset("pyiqa").target, get_preset("pyiqa").plcc) == ("mos_raw", "plcc")
    assert (get_preset("mr-iqa").target, get_preset("mr-iqa").plcc) == ("mos", "plcc")
    assert get_preset("deqa").splits["kadid10k"] == "test"
    assert get_preset("mr-iqa").splits["kadid10k"] == WHOLE
    assert len(get_preset("deqa").splits) == 8
    for preset in PRESETS.values():
        assert preset.splits["koniq10k"] == "test"
        assert set(preset.sizes) <= set(preset.splits)


def test_unknown_protocol():
    with pytest.raises(ValueError, match=r"'paper'.*deqa, pyiqa, mr-iqa"):
        get_preset("paper")


def test_another_list_of_images_is_said():
    deqa = get_preset("deqa")
    assert departures(deqa, "koniq10k", 2010) == []
    assert "2010 images, these are 2015" in departures(deqa, "koniq10k", 2015)[0]
    assert departures(get_preset("pyiqa"), "koniq10k", 2015) == []
    assert departures(get_preset("mr-iqa"), "kadid10k", 10125) == []
    assert "10125 images, these are 2000" in departures(get_preset("mr-iqa"), "kadid10k", 2000)[0]
    assert "no set 'mine'" in departures(deqa, "mine", 10)[0]


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
