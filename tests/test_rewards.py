import inspect
import math
import multiprocessing
import pickle
import random
import statistics
from datetime import timedelta

import pytest
import torch
from scipy.stats import norm

from q_hawkeye_trl.objective.comparison import margin_rewards, rank_rewards
from q_hawkeye_trl.rewards import (
    REWARDS,
    accuracy_reward,
    configure_reward,
    format_reward,
    get_reward,
    margin_reward,
    rank_reward,
    repetition_reward,
    threshold_reward,
)


def _answer(score):
    """A completion that states the score, or one that states none."""
    return "no idea" if score is None else f"<think>x</think><answer>{score:.6f}</answer>"


def _as_messages(text):
    return [{"role": "assistant", "content": text}]


# --- accuracy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.30, 1.5])
def test_accuracy_equals_the_reference(tau):
    rng = random.Random(0)
    scores = [rng.uniform(-1, 7) for _ in range(50)] + [None]
    mos = [rng.uniform(1, 5) for _ in scores]
    expected = []
    for score, label in zip(scores, mos, strict=True):
        if score is None:
            expected.append(0.0)
        else:
            stated = float(f"{score:.6f}")
            expected.append(math.exp(-abs((1.0 if stated < 1 else 5.0 if stated > 5 else stated) - label) / tau))
    texts = [_answer(score) for score in scores]
    assert accuracy_reward(texts, mos, tau=tau) == pytest.approx(expected, rel=1e-12)
    assert accuracy_reward([_as_messages(text) for text in texts], mos, tau=tau) == pytest.approx(expected, rel=1e-12)


def test_accuracy_known_values():
    texts = [_answer(3.0), _answer(3.3), _answer(2.7), _answer(9.0), _answer(-9.0), "<answer>3"]
    rewards = accuracy_reward(texts, [3.0, 3.0, 3.0, 5.0, 1.0, 3.0])
    assert rewards == pytest.approx([1.0, 1 / math.e, 1 / math.e, 1.0, 1.0, 0.0])


def test_accuracy_logs_the_share_of_scores_out_of_range():
    logged = []
    texts = [_answer(5.01), _answer(0.99), _answer(5.0), _answer(1.0), "none", _answer(3.0), _answer(1e9), ""]
    accuracy_reward(texts, [3.0] * 8, log_metric=lambda name, value: logged.append((name, value)))
    assert logged == [("rewards/out_of_range_share", 3 / 8)]


def test_accuracy_keeps_the_scale_that_it_is_given():
    assert accuracy_reward(
        [_answer(50), _answer(200)], [60, 100], tau=10, score_min=0, score_max=100
    ) == pytest.approx([math.exp(-1), 1.0])


def test_accuracy_reads_scores_with_the_function_that_it_is_given():
    assert accuracy_reward(["a", "bb"], [1.0, 3.0], score_fn=lambda text: float(len(text)), tau=1) == pytest.approx(
        [1.0, math.exp(-1)]
    )


@pytest.mark.parametrize("name", ["accuracy", "threshold", "rank", "margin"])
@pytest.mark.parametrize("bad", [math.nan, None, 0.99, 5.01, math.inf, -math.inf, 73.2])
def test_a_bad_mos_is_an_error_that_names_the_image(name, bad):
    with pytest.raises(ValueError, match=r"koniq/7\.jpg"):
        REWARDS[name]([_answer(3.0), _answer(3.0)], [3.0, bad], image_id=["koniq/6.jpg", "koniq/7.jpg"])


def test_a_bad_mos_without_image_ids_is_an_error_that_names_the_row():
    with pytest.raises(ValueError, match="row 1"):
        accuracy_reward([_answer(3.0), _answer(3.0)], [3.0, 6.0])


def test_lengths_that_differ_are_an_error():
    with pytest.raises(ValueError, match=r"zip|length"):
        accuracy_reward([_answer(3.0)], [3.0, 3.0])


# --- format, repetition, threshold ----------------------------------------------------------------------------------


def test_format_is_all_or_nothing():
    texts = ["<think>a</think><answer>3</answer>", "<answer>3</answer>", "", "<think>a</think><answer>good</answer>"]
    assert format_reward(texts, [3.0] * 4) == [0.8, 0.0, 0.0, 0.0]
    assert format_reward(completions=[_as_messages(text) for text in texts]) == [0.8, 0.0, 0.0, 0.0]


def _reference_repetition(answer):
    """Strips punctuation by hand and penalises every occurrence of what stands more than 5 times."""
    bare = "".join(char for char in answer.strip() if char.isalnum() or char == "_" or char.isspace())
    words = bare.split()
    penalty = sum(0.25 for word in words if words.count(word) > 5)
    penalty += sum(0.25 for char in bare if list(bare).count(char) > 5)
    return -min(penalty, 2.0)


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("3.75", 0.0),
        ("", 0.0),
        ("11111", 0.0),  # five times is allowed
        ("111111", -1.5),  # six characters
        ("1.000000", -1.5),
        ("1111111", -1.75),
        ("99999999", -2.0),
        ("9" * 500, -2.0),  # the floor
        ("......", 0.0),  # punctuation does not count
        ("-1-2-3-4-5-6-7-", 0.0),
        ("a b c d e f", 0.0),  # five spaces
        ("a b c d e f g", -1.5),  # six spaces
        ("      a      ", 0.0),  # white space at the ends is trimmed
        ("a\nb\nc\nd\ne\nf\ng", -1.5),
        ("w w w w w w", -2.0),  # six words and six characters: -3, floored
        ("A a A a A a A a", -1.75),  # case matters: four of each; seven spaces
        ("a,a,a,a,a,a", -1.5),  # one word "aaaaaa" without its commas
    ],
)
def test_repetition_known_values(answer, reward):
    assert repetition_reward([f"<answer>{answer}</answer>"]) == [reward]
    assert _reference_repetition(answer) == reward


def test_repetition_equals_the_reference():
    rng = random.Random(1)
    answers = ["".join(rng.choices("ab1. -\n", k=rng.randint(0, 25))) for _ in range(300)]
    expected = [_reference_repetition(answer) for answer in answers]
    assert set(expected) == {0.0, -1.5, -1.75, -2.0}
    assert repetition_reward([f"<answer>{answer}</answer>" for answer in answers], [3.0] * 300) == expected


def test_repetition_looks_at_the_answer_alone():
    texts = ["a" * 50, "<answer>" + "a" * 50, "<think>" + "a" * 50 + "</think><answer>3</answer>"]
    assert repetition_reward(texts) == [0.0, 0.0, 0.0]
    assert all(math.copysign(1, reward) == 1 for reward in repetition_reward(texts))  # no -0.0 in the log


@pytest.mark.parametrize("threshold", [0.35, 1.0])
def test_threshold_is_exclusive(threshold):
    texts = ["<answer>3</answer>", "<answer>3.3499</answer>", "<answer>3.3501</answer>", "<answer>4</answer>", "none"]
    expected = [1.0, 1.0, 0.0 if threshold == 0.35 else 1.0, 0.0, 0.0]
    assert threshold_reward(texts, [3.0] * 5, threshold=threshold) == expected


def test_threshold_compares_the_score_as_it_stands():
    assert threshold_reward([_answer(5.2), _answer(5.5)], [5.0, 5.0]) == [1.0, 0.0]


# --- rank and margin ------------------------------------------------------------------------------------------------


def _reference_comparison(scores, mos, image_ids, datasets, pair):
    """`pair(score, own scores, own row, other scores, other row)` averaged over the other images, by loops."""
    rewards = []
    for i, score in enumerate(scores):
        values, seen = [], set()
        for z in range(len(scores)):
            key = (datasets[z], image_ids[z])
            if key in seen or key == (datasets[i], image_ids[i]) or datasets[z] != datasets[i]:
                continue
            seen.add(key)
            own, other = (
                [s for s, d, n in zip(scores, datasets, image_ids, strict=True) if (d, n) == wanted and s is not None]
                for wanted in ((datasets[i], image_ids[i]), key)
            )
            if score is not None and other:
                values.append(pair(score, own, i, other, z))
        rewards.append(statistics.fmean(values) if values else 0.0)
    return rewards


def _variance(values):
    return statistics.variance(values) if len(values) > 1 else 0.0


def _reference_rank(scores, mos, image_ids, datasets):
    def pair(score, own, i, other, z):
        p = norm.cdf((score - statistics.fmean(other)) / math.sqrt(_variance(own) + _variance(other) + 1e-6))
        g = 1.0 if mos[i] > mos[z] else 0.0 if mos[i] < mos[z] else 0.5
        return math.sqrt(p * g) + math.sqrt((1 - p) * (1 - g))

    return _reference_comparison(scores, mos, image_ids, datasets, pair)


def _reference_margin(scores, mos, image_ids, datasets, sigma=1.0, stds=None):
    def pair(score, own, i, other, z):
        width = sigma if stds is None else math.sqrt(stds[i] ** 2 + stds[z] ** 2)
        return math.exp(-0.5 * (((score - statistics.fmean(other)) - (mos[i] - mos[z])) / width) ** 2)

    return _reference_comparison(scores, mos, image_ids, datasets, pair)


def _batch(rollouts, seed, images=6):
    """Rows of several images, shuffled: two data sets that share an id, tied MOS, tied scores, unparsed rollouts."""
    rng = random.Random(seed)
    rows = []
    for image in range(images):
        mos = rng.choice([1.5, 2.0, 3.25, 4.0])
        dataset, name = ("a", image) if image < 4 else ("b", image - 4)
        for _ in range(rollouts):
            score = None if rng.random() < 0.2 or image == 2 else rng.choice([2.0, 3.0, rng.uniform(1, 5)])
            rows.append((score, mos, name, dataset, 0.2 + image / 10))
    rng.shuffle(rows)
    return (list(column) for column in zip(*rows, strict=True))


@pytest.mark.parametrize("rollouts", range(1, 9))
@pytest.mark.parametrize("seed", range(3))
def test_rank_equals_the_reference(rollouts, seed):
    scores, mos, image_ids, datasets, _ = _batch(rollouts, seed)
    expected = _reference_rank(scores, mos, image_ids, datasets)
    assert rank_rewards(scores, mos, image_ids, datasets) == pytest.approx(expected, rel=1e-9, abs=1e-7)


@pytest.mark.parametrize("rollouts", range(1, 9))
@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_margin_equals_the_reference(rollouts, sigma):
    scores, mos, image_ids, datasets, stds = _batch(rollouts, seed=rollouts)
    expected = _reference_margin(scores, mos, image_ids, datasets, sigma=sigma)
    assert margin_rewards(scores, mos, image_ids, datasets, sigma=sigma) == pytest.approx(expected, rel=1e-9)
    expected = _reference_margin(scores, mos, image_ids, datasets, stds=stds)
    assert margin_rewards(scores, mos, image_ids, datasets, mos_stds=stds) == pytest.approx(expected, rel=1e-9)


def test_rank_of_two_certain_images():
    # no spread at all: right order 1, wrong order 0, and sqrt(1/2) where the scores tie but the MOS do not
    assert rank_rewards([4.0, 2.0], [4.5, 1.5], ["a", "b"]) == pytest.approx([1.0, 1.0])
    assert rank_rewards([2.0, 4.0], [4.5, 1.5], ["a", "b"]) == pytest.approx([0.0, 0.0])
    assert rank_rewards([3.0, 3.0], [4.5, 1.5], ["a", "b"]) == pytest.approx([math.sqrt(0.5)] * 2)
    assert rank_rewards([3.0, 3.0], [2.0, 2.0], ["a", "b"]) == pytest.approx([1.0, 1.0])
    assert rank_rewards([4.0, 2.0], [2.0, 2.0], ["a", "b"]) == pytest.approx([math.sqrt(0.5)] * 2)


def test_rank_uses_the_sample_variance():
    # image a: 3 and 4 (mean 3.5, sample variance 0.5), image b: 2 and 2
    expected = math.sqrt(norm.cdf((3.0 - 2.0) / math.sqrt(0.5 + 1e-6)))
    assert rank_rewards([3.0, 4.0, 2.0, 2.0], [4, 4, 1, 1], list("aabb"))[0] == pytest.approx(expected, rel=1e-9)


def test_margin_is_one_where_the_distance_is_right_and_falls_with_its_error():
    # shifted by 0.5, but right relative to each other
    assert margin_rewards([4.5, 2.5], [4.0, 2.0], ["a", "b"]) == [1.0, 1.0]
    rewards = [margin_rewards([4.0 + error, 2.0], [4.0, 2.0], ["a", "b"])[0] for error in (0.0, 0.5, 1.0)]
    assert rewards == pytest.approx([1.0, math.exp(-0.125), math.exp(-0.5)])


@pytest.mark.parametrize("function", [rank_rewards, margin_rewards])
def test_comparisons_have_a_value_where_there_is_nobody_to_compare_with(function):
    assert function([], [], []) == []
    assert function([3.0, 3.5], [3.0, 3.0], ["a", "a"]) == [0.0, 0.0]  # alone
    assert function([None, None], [3.0, 2.0], ["a", "b"]) == [0.0, 0.0]  # nobody parsed
    assert function([3.0, None], [3.0, 2.0], ["a", "b"]) == [0.0, 0.0]  # the only other did not
    assert function([3.0, 3.0], [3.0, 2.0], ["a", "b"], ["x", "y"]) == [0.0, 0.0]  # other data sets only
    assert function([3.0, 3.0], [3.0, 2.0], ["a", "a"], ["x", "y"]) == [0.0, 0.0]  # one id, two data sets
    rewards = function([3.0, None, 2.0], [3.0, 3.0, 2.0], ["a", "a", "b"])
    assert rewards[1] == 0.0
    assert rewards[0] > 0.9


@pytest.mark.parametrize("function", [rank_rewards, margin_rewards])
def test_comparisons_follow_their_rows(function):
    scores, mos, image_ids, datasets, _ = _batch(4, seed=8)
    rewards = function(scores, mos, image_ids, datasets)
    assert all(0 <= reward <= 1 for reward in rewards)
    order = list(range(len(scores)))
    random.Random(2).shuffle(order)
    shuffled = function(*([column[i] for i in order] for column in (scores, mos, image_ids, datasets)))
    assert shuffled == pytest.approx([rewards[i] for i in order], rel=1e-12)


@pytest.mark.parametrize("function", [rank_rewards, margin_rewards])
def test_one_image_with_two_labels_is_an_error(function):
    with pytest.raises(ValueError, match="'a'"):
        function([3.0, 3.0], [3.0, 2.0], ["a", "a"])


@pytest.mark.parametrize("stds", [[0.5, 0.0], [0.5, None], [0.5, math.nan], [0.5, -1.0]])
def test_margin_refuses_deviations_that_are_not_positive(stds):
    with pytest.raises(ValueError, match="positive"):
        margin_rewards([3.0, 3.0], [3.0, 2.0], ["a", "b"], mos_stds=stds)


@pytest.mark.parametrize("name", ["rank", "margin"])
def test_comparing_rewards_equal_their_pure_functions(name):
    scores, mos, image_ids, datasets, stds = _batch(4, seed=1)
    scores = [None if score is None else round(score, 6) for score in scores]
    texts = [_as_messages(_answer(score)) for score in scores]
    columns = {"image_id": image_ids, "dataset": datasets, "mos_std": stds, "prompts": texts, "trainer_state": None}
    pure = rank_rewards if name == "rank" else margin_rewards
    assert REWARDS[name](texts, mos, **columns) == pytest.approx(pure(scores, mos, image_ids, datasets), rel=1e-12)


def test_margin_reward_reads_the_deviations_only_when_told():
    texts, mos, image_ids, stds = [_answer(4.0), _answer(2.0)], [3.5, 2.5], ["a", "b"], [0.3, 0.4]
    assert margin_reward(texts, mos, image_id=image_ids, mos_std=stds, sigma=2.0) == pytest.approx(
        [math.exp(-0.125)] * 2
    )
    assert margin_reward(texts, mos, image_id=image_ids, mos_std=stds, use_mos_std=True) == pytest.approx(
        [math.exp(-2.0)] * 2
    )
    with pytest.raises(ValueError, match="mos_std"):
        margin_reward(texts, mos, image_id=image_ids, use_mos_std=True)


@pytest.mark.parametrize("reward", [rank_reward, margin_reward])
def test_one_absurd_score_counts_as_the_end_of_the_scale(reward):
    arguments = {"mos": [4.0, 4.0, 2.0], "image_id": ["a", "a", "b"]}
    texts = [_answer(4.0), "<answer>" + "9" * 300 + "</answer>", _answer(2.0)]
    assert reward(texts, **arguments) == reward([_answer(4.0), _answer(5.0), _answer(2.0)], **arguments)


@pytest.mark.parametrize("reward", [rank_reward, margin_reward])
def test_comparing_rewards_refuse_rows_without_a_name(reward):
    with pytest.raises(ValueError, match="image_id"):
        reward([_answer(3.0)], [3.0])
    with pytest.raises(ValueError, match="Row 1"):
        reward([_answer(3.0), _answer(3.0)], [3.0, 3.0], image_id=["a", None])


def _run_rank(rank, store, rows, bad_mos, queue):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=30)
    )
    completions, mos, image_ids, datasets = ([row[column] for row in rows[rank]] for column in range(4))
    rewards = rank_reward(completions, mos, image_id=image_ids, dataset=datasets)
    mos = [bad_mos] * len(mos) if rank == 0 else mos
    try:
        margin_reward(completions, mos, image_id=image_ids, dataset=datasets)
        error = None
    except ValueError as raised:
        error = str(raised)
    queue.put((rank, rewards, error))
    queue.close()
    queue.join_thread()
    torch.distributed.destroy_process_group()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="forks its two ranks")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("split", [7, 0])
def test_two_ranks_compare_all_rows(tmp_path, split):
    # groups of 4 split across the ranks; then one rank without any row, which must take part all the same
    scores, mos, image_ids, datasets, _ = _batch(4, seed=4)
    scores = [None if score is None else round(score, 6) for score in scores]
    rows = list(zip([_answer(score) for score in scores], mos, image_ids, datasets, strict=True))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    parts = (rows[split:], rows[:split])
    ranks = [
        context.Process(target=_run_rank, args=(rank, tmp_path / "store", parts, 9.0, queue), daemon=True)
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    results = sorted(queue.get(timeout=40) for _ in ranks)
    for process in ranks:
        process.join(timeout=10)
    expected = rank_rewards(scores, mos, image_ids, datasets)
    assert results[0][1] == pytest.approx(expected[split:], rel=1e-12)
    assert results[1][1] == pytest.approx(expected[:split], rel=1e-12)
    assert results[0][2] == results[1][2] is not None  # the bad label of rank 0 stops both alike
    assert [process.exitcode for process in ranks] == [0, 0]


# --- configuration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REWARDS)
def test_every_reward_takes_what_trl_hands_over(name):
    texts = [_answer(3.0), _answer(None), _answer(2.0), _answer(2.0)]
    arguments = {
        "prompts": [[{"role": "user", "content": "?"}]] * 4,
        "completion_ids": [[1, 2]] * 4,
        "mos": [3.0, 3.0, 2.0, 2.0],
        "image_id": ["a", "a", "b", "b"],
        "image": [None] * 4,
        "trainer_state": None,
        "log_extra": lambda column, values: None,
        "log_metric": lambda name, value: None,
    }
    for completions in (texts, [_as_messages(text) for text in texts]):
        rewards = REWARDS[name](completions=completions, **arguments)
        assert len(rewards) == 4
        assert all(type(reward) is float and math.isfinite(reward) for reward in rewards)
        assert get_reward(name)(completions=completions, **arguments) == rewards
    assert REWARDS[name](completions=[], mos=[], image_id=[], log_metric=arguments["log_metric"]) == []


@pytest.mark.parametrize("name", REWARDS)
def test_every_reward_is_logged_under_its_own_name(name):
    assert REWARDS[name].__name__ == get_reward(name).__name__ == f"{name}_reward"
    assert not inspect.iscoroutinefunction(get_reward(name))


def test_configured_rewards_use_their_parameters():
    texts, mos = [_answer(3.5)], [3.0]
    assert get_reward("accuracy", tau=1.0)(texts, mos) == pytest.approx([math.exp(-0.5)])
    assert configure_reward(threshold_reward, threshold=0.6)(texts, mos) == [1.0]
    twice = configure_reward(get_reward("accuracy", tau=9.0, score_max=10.0), tau=1.0)
    assert twice(texts, [8.0]) == pytest.approx([math.exp(-4.5)])
    assert accuracy_reward(texts, mos) == pytest.approx([math.exp(-0.5 / 0.3)])  # the original is as it was


def test_configured_rewards_can_be_pickled():
    reward = pickle.loads(pickle.dumps(get_reward("accuracy", tau=1.0)))
    assert reward.__name__ == "accuracy_reward"
    assert reward([_answer(3.5)], [3.0]) == pytest.approx([math.exp(-0.5)])


@pytest.mark.parametrize(
    ("name", "parameter", "message"),
    [
        ("accuracy", "temperature", "it knows tau, score_min, score_max, score_fn"),
        ("rank", "sigma", "it knows score_min, score_max, score_fn"),
        ("accuracy", "log_metric", "no parameter `log_metric`"),
        ("rank", "image_id", "no parameter `image_id`"),
        ("margin", "mos_std", "sigma, use_mos_std"),
        ("format", "value", "it has none"),
        ("repetition", "mos", "it has none"),
    ],
)
def test_an_unknown_parameter_is_an_error_that_lists_the_known(name, parameter, message):
    with pytest.raises(ValueError, match=message):
        get_reward(name, **{parameter: 1.0})


def test_an_unknown_reward_is_an_error_that_lists_the_known():
    with pytest.raises(ValueError, match="accuracy, format, repetition, threshold, rank, margin"):
        get_reward("acuracy")


@pytest.mark.parametrize(("name", "parameter"), [("accuracy", "tau"), ("threshold", "threshold"), ("margin", "sigma")])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_a_tolerance_must_be_positive(name, parameter, value):
    with pytest.raises(ValueError, match=parameter):
        get_reward(name, **{parameter: value})([_answer(3.0)], [3.0], image_id=["a"])
