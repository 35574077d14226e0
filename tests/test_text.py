import time
import unicodedata

import pytest

from q_hawkeye_trl.text import (
    QUALITY_PROMPT,
    answer_text,
    completion_text,
    has_answer_format,
    parse_score,
    quality_messages,
)

# The content of a closed answer, and its score.
NUMBERS = [("3.75", 3.75), ("4", 4.0), ("4.", 4.0), (".5", 0.5), ("-1.2", -1.2), ("-.5", -0.5), ("0", 0.0)]
NUMBERS += [("-0", 0.0), ("007.50", 7.5), ("  3.2\n", 3.2), ("\t3.2", 3.2), ("3.2\u00a0", 3.2)]
NUMBERS += [("250", 250.0), ("3." + "3" * 500, 10 / 3), ("0" * 500 + "3", 3.0)]

NO_NUMBERS = ["", " ", ".", "-", "-.", "...", "3.7.5", "3..5", "1,5", "3,75", "+3", "--3", "−3", "- 3", "3 4", "3\n4"]
NO_NUMBERS += ["1e3", "1E-3", "0x3", "1_0", "nan", "NaN", "inf", "-inf", "Infinity", "3/5", "80%", "three", "about 3"]
NO_NUMBERS += ["3 out of 5", "[3.5]", "**3.5**", "$3.5$", "<b>3</b>", "\u200b3"]
# digits of other scripts: Arabic-Indic, full-width, Devanagari, mixed, superscript, Roman
NO_NUMBERS += ["\u0663", "\uff13.\uff15", "\u0969", "3\u0662", "\u00b3", "\u2162"]


@pytest.mark.parametrize(("inside", "score"), NUMBERS)
def test_parse_score_reads_plain_decimals(inside, score):
    assert parse_score(f"<answer>{inside}</answer>") == pytest.approx(score, rel=1e-12)
    assert parse_score(f"<think>it is 2.0, or 1e3</think>\n<answer>{inside}</answer> bye") == pytest.approx(score)


@pytest.mark.parametrize("inside", NO_NUMBERS)
def test_parse_score_rejects_everything_else(inside):
    text = f"<think>fine</think><answer>{inside}</answer>"
    assert parse_score(text) is None
    assert not has_answer_format(text)


def test_parse_score_rejects_every_digit_that_is_not_ascii():
    digits = [chr(code) for code in range(128, 0x110000) if unicodedata.category(chr(code)) in ("Nd", "No", "Nl")]
    assert len(digits) > 500
    assert all(parse_score(f"<answer>{digit}</answer>") is None for digit in digits)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("", None),
        ("3.5", None),
        ("<think>3.5</think>", None),
        ("<answer>3.5", None),
        ("3.5</answer>", None),
        ("</answer>3.5<answer>", None),
        ("<ANSWER>3.5</ANSWER>", None),
        ("<answer >3.5</answer>", None),
        ("<answer>3.5</answer><answer>3.5</answer>", 3.5),
        ("<answer>3.5</answer> so <answer>3.50</answer>", 3.5),
        ("<answer>3.5</answer><answer>3.6</answer>", None),
        ("<answer>3.5</answer><answer>good</answer>", None),
        ("<answer></answer><answer>3.5</answer>", None),
        ("<answer>3.5</answer><answer>3.5", None),
        ("<answer>3.5</answer></answer>", None),
        ("<answer><answer>3.5</answer></answer>", None),
        ("<answer><answer>3.5</answer>", None),
        # equal counts, but one is left open
        ("<answer>3.5</answer></answer><answer>", None),
        ("</answer><answer>3.5</answer><answer>2", None),
    ],
)
def test_parse_score_needs_closed_answers_that_agree(text, score):
    assert parse_score(text) == score


@pytest.mark.parametrize("digits", ["9" * 400, "1" + "0" * 5000, "-" + "9" * 400])
def test_parse_score_never_returns_infinity(digits):
    assert parse_score(f"<answer>{digits}</answer>") is None
    assert parse_score(f"<answer>{digits}</answer><answer>3</answer>") is None


@pytest.mark.parametrize(
    "text",
    [
        "<answer>" + "9" * 100_000 + "x</answer>",
        "<answer>" + " " * 100_000 + "x</answer>",
        "<think></think><answer>" + "9" * 100_000 + "x</answer>",
        "<think>" + "<think" * 20_000,
        "<answer>" * 20_000,
    ],
)
def test_parsing_stays_fast_on_hostile_text(text):
    start = time.perf_counter()
    assert parse_score(text) is None
    assert not has_answer_format(text)
    assert time.perf_counter() - start < 1.0


@pytest.mark.parametrize(
    "text",
    [
        "<think>blurred</think><answer>3.5</answer>",
        "<think></think><answer>3</answer>",
        "  <think>a\nb</think>\n\n<answer> 3.5 </answer>\n",
        "<think>a < b, 3 > 2, <i>so</i></think><answer>-.5</answer>",
        "<think>blurred</think><answer>9</answer>",
    ],
)
def test_has_answer_format_accepts(text):
    assert has_answer_format(text)
    assert parse_score(text) is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<answer>3.5</answer>",
        "<think>a</think>",
        "<think>a</think><answer>3.5",
        "<think>a<answer>3.5</answer>",
        "<answer>3.5</answer><think>a</think>",
        "Sure: <think>a</think><answer>3.5</answer>",
        "<think>a</think><answer>3.5</answer> done",
        "<think>a</think> hence <answer>3.5</answer>",
        "<think>a</think><think>b</think><answer>3.5</answer>",
        "<think>a<think>b</think><answer>3.5</answer>",
        "<think>a</think></think><answer>3.5</answer>",
        "<think>a</think><answer>3.5</answer><answer>3.5</answer>",
        "<think>a <answer>3.5</answer></think><answer>3.5</answer>",
        "<think>a</think><answer>good</answer>",
        "<Think>a</Think><answer>3.5</answer>",
    ],
)
def test_has_answer_format_rejects(text):
    assert not has_answer_format(text)


def test_completion_text_joins_the_assistant_messages():
    blocks = [{"type": "text", "text": "b"}, {"type": "image"}, {"type": "text", "text": "c"}]
    conversation = [
        {"role": "assistant", "content": "a"},
        {"role": "tool", "content": "<answer>1</answer>"},
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": blocks},
    ]
    assert completion_text("plain") == "plain"
    assert completion_text(conversation) == "a\nb\nc"
    assert completion_text([]) == ""


def test_answer_text_is_the_last_closed_answer():
    assert answer_text("<answer>1</answer> <answer> 2\n</answer>") == " 2\n"
    assert answer_text("<answer>1</answer><answer>2") == "1"
    assert answer_text("<answer>1") is None
    assert answer_text("") is None


def test_quality_messages_ask_for_the_format_that_is_rewarded():
    assert quality_messages() == [{"role": "user", "content": QUALITY_PROMPT}]
    assert quality_messages("how?") == [{"role": "user", "content": "how?"}]
    shown = QUALITY_PROMPT.split("form: ")[1].replace("your rating", "3.21")
    assert has_answer_format(shown)
    assert parse_score(shown) == 3.21
