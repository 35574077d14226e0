import itertools

import numpy as np
import pytest

from q_hawkeye_trl.data.splits import draw_splits, join_groups, split_name


def _sizes(drawn, splits=3):
    return [list(drawn.values()).count(number) for number in range(splits)]


def test_shares_are_kept_and_every_group_has_one_split():
    groups = [f"I{n:02}" for n in range(1, 82)]
    drawn = draw_splits(groups * 125)
    assert set(drawn) == set(groups)
    assert _sizes(drawn) == [57, 8, 16]


def test_the_draw_depends_on_seed_and_names_alone():
    groups = [f"image {n}" for n in range(200)]
    state = np.random.get_state()[1].copy()
    first = draw_splits(groups, seed=1)
    assert draw_splits(reversed(groups), seed=1) == first
    assert draw_splits(groups, seed=2) != first
    assert np.array_equal(np.random.get_state()[1], state)


def test_removing_a_group_moves_only_groups_at_the_borders():
    groups = [f"image {n}" for n in range(500)]
    before, after = draw_splits(groups), draw_splits(groups[1:])
    assert sum(before[name] != after[name] for name in groups[1:]) <= 2


@pytest.mark.parametrize("count", range(3, 9))
def test_small_sets_get_every_split(count):
    sizes = _sizes(draw_splits([str(n) for n in range(count)]))
    assert min(sizes) >= 1
    assert sum(sizes) == count


def test_a_share_of_zero_gets_nothing():
    assert _sizes(draw_splits(map(str, range(50)), (0.8, 0, 0.2))) == [40, 0, 10]
    assert _sizes(draw_splits("ab", (1, 0, 0))) == [2, 0, 0]
    assert sum(_sizes(draw_splits(["\udcff.png"]))) == 1  # a name that is not UTF-8


@pytest.mark.parametrize("shares", [(0, 0, 0), (-0.1, 0.5, 0.6), (float("inf"), 0, 1)])
def test_impossible_shares_are_refused(shares):
    with pytest.raises(ValueError, match="Shares"):
        draw_splits("abc", shares)


def test_splits_are_known_by_their_usual_names():
    names = {"training": "train", " Train": "train", "val": "validation", "dev": "validation", "TEST": "test"}
    assert {text: split_name(text, "here") for text in names} == names
    with pytest.raises(ValueError, match=r"line 3: expected a split .*'holdout'"):
        split_name("holdout", "line 3")


def _reference_groups(keys):
    """Merges sets that overlap until none do."""
    groups = [set(row) for row in keys]
    merged = True
    while merged:
        merged = False
        for left, right in itertools.combinations(groups, 2):
            if left & right:
                groups.remove(right)
                left |= right
                merged = True
                break
    return [next(n for n, group in enumerate(groups) if set(row) <= group) for row in keys]


def test_rows_that_share_a_key_share_a_group_by_way_of_others_too():
    rng = np.random.default_rng(0)
    for _ in range(50):
        keys = [[f"name {n}", *(f"key {k}" for k in rng.integers(0, 12, rng.integers(0, 3)))] for n in range(12)]
        found, expected = join_groups(keys), _reference_groups(keys)
        for a, b in itertools.combinations(range(12), 2):
            assert (found[a] == found[b]) == (expected[a] == expected[b])


def test_names_of_groups_do_not_depend_on_the_order_of_rows():
    keys = [["b", "x"], ["a", "x"], ["c"], ["d", "y"], ["e", "y"]]
    assert join_groups(keys) == ["a", "a", "c", "d", "d"]
    assert join_groups(keys[::-1]) == ["d", "d", "c", "a", "a"]
