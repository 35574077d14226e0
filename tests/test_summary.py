"""Counts and extremes of a run, and how they are printed."""

import io
import random

from rich.console import Console

from q_hawkeye_trl.scoring.scored import ScoredImage, score_answers
from q_hawkeye_trl.scoring.summary import print_summary, summarize


def scored(number: int, score: float, spread: float | None = None) -> ScoredImage:
    return ScoredImage(f"{number}.png", score=score, spread=spread, parse_rate=1.0, rollouts=(score,))


def printed(images, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    print_summary(summarize(images), console)
    return console.file.getvalue()


def test_extremes_equal_those_of_a_sort():
    rng = random.Random(0)
    images = [scored(number, rng.choice([1, 2, 3, 4, 5]), rng.random()) for number in range(300)]
    summary = summarize(iter(images), shown=7)
    # stable sorts: of equal values the first stay in front
    assert summary.best == sorted(images, key=lambda each: -each.score)[:7]
    assert summary.worst == sorted(images, key=lambda each: each.score)[:7]
    assert summary.uncertain == sorted(images, key=lambda each: -each.spread)[:7]


def test_counts():
    images = [
        scored(0, 3.0),
        score_answers("c", ["<answer>9</answer>", "<answer>0</answer>"]),
        score_answers("u", ["?"]),
        *[ScoredImage(f"b{number}", error=f"b{number} is broken") for number in range(7)],
    ]
    summary = summarize(images)
    assert (summary.images, summary.scored, summary.unparsed, summary.broken, summary.clamped) == (10, 2, 1, 7, 2)
    text = " ".join(printed(images).split())
    assert all(part in text for part in ("10 images: 2 scored", "1 without", "7 unreadable", "2 answers clamped"))
    assert "b4 is broken" in text
    assert "b5 is broken" not in text
    assert "1 image: 1 scored\n" in printed([scored(0, 3.0)])
    assert "0 images: 0 scored" in printed([])


def test_few_images_are_listed_once_and_many_by_their_extremes():
    few = printed([scored(number, 1 + number / 3) for number in range(9)])
    assert all(few.count(f"{number}.png") == 1 for number in range(9))
    tied = printed([scored(number, 4.83 if number < 3 else 3.93) for number in range(10)])
    assert [tied.index(f"{number}.png") for number in range(10)] == sorted(tied.index(f"{n}.png") for n in range(10))
    assert few.index("8.png") < few.index("0.png")
    many = printed([scored(number, 1 + number / 10, spread=number % 7) for number in range(40)])
    assert all(word in many for word in ("39.png", "0.png", "6.png", "best", "worst", "least certain"))
    assert "17.png" not in many
    greedy = printed([scored(number, 1 + number / 10) for number in range(40)])
    assert "least certain" not in greedy


def test_markup_and_control_characters_are_shown_and_not_obeyed():
    answers = ["<think>[red]no[/red] [/oops] \x1b[2J</think><answer>3</answer>"]
    text = printed(
        [score_answers("[bold]x[/bold]\x1b[31m.png", answers), ScoredImage("e", error="[link=x]\x1b]0;t\x07")]
    )
    assert not {"\x1b", "\x07"} & set(text)
    assert "[bold]x[/bold]" in text.replace("\n", "")
    assert all(markup in text for markup in ("[red]no[/red] [/oops]", "[link=x]"))
