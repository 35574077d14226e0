import json

import pytest

from q_hawkeye_trl.question import Question, load_question, name_parser, parse_boxed, save_questions
from q_hawkeye_trl.text import QUALITY_PROMPT, parse_score

HUNDRED = Question(prompt="Rate it from 0 to 100.", score_min=0, score_max=100, parser="boxed", max_pixels=50_176)


def test_saved_questions_are_loaded_by_task(tmp_path):
    save_questions(tmp_path, {"quality": Question(), "sharpness": HUNDRED})
    assert load_question(tmp_path) == Question()
    assert load_question(tmp_path, "sharpness") == HUNDRED
    content = json.loads((tmp_path / "quality_task.json").read_text())
    assert content["version"] == 1
    assert content["tasks"]["sharpness"]["score_max"] == 100


def test_a_folder_without_the_file_has_no_question(tmp_path):
    assert load_question(tmp_path) is None


def test_the_default_question_is_the_projects(tmp_path):
    question = Question()
    assert question.messages() == [{"role": "user", "content": QUALITY_PROMPT}]
    assert question.scale == (1.0, 5.0)
    assert question.parse is parse_score


def test_a_conversation_is_kept_as_it_is(tmp_path):
    messages = [{"role": "system", "content": "You are a rater."}, {"role": "user", "content": "Rate it."}]
    save_questions(tmp_path, {"quality": Question(prompt=messages)})
    assert load_question(tmp_path).messages() == messages


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (r"\boxed{80}", 80.0),
        (r"so \boxed{ 72.5 } points", 72.5),
        (r"\boxed{3} and \boxed{3.0}", 3.0),
        (r"\boxed{3} and \boxed{4}", None),
        (r"\boxed{3} and \boxed{good}", None),
        (r"\boxed{}", None),
        ("80", None),
        (r"\boxed{１}", None),
    ],
)
def test_boxed_scores(text, score):
    assert parse_boxed(text) == score


@pytest.mark.parametrize("parser", ["json:loads", "number", "boxed"])
def test_parsers_are_found_by_name(parser):
    assert callable(Question(parser=parser).parse)
    assert name_parser(Question(parser=parser).parse) in (parser, "json:loads")


def test_a_lambda_has_no_name():
    assert name_parser(lambda text: 3.0) is None
    with pytest.raises(ValueError, match="module:function"):
        _ = Question(parser=None).parse


@pytest.mark.parametrize(
    "options", [{"score_min": 5}, {"parser": "xml"}, {"max_pixels": 0}, {"parser": "no_such_module:f"}]
)
def test_bad_questions_are_refused(options):
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        _ = Question(**options).parse


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"version": 2, "tasks": {}}',
        '{"version": 1, "tasks": {}}',
        '{"version": 1, "tasks": {"quality": {"colour": 1}}}',
        '{"version": 1, "tasks": {"quality": {"score_min": 9}}}',
    ],
)
def test_damaged_files_are_named(tmp_path, content):
    (tmp_path / "quality_task.json").write_text(content)
    with pytest.raises(ValueError, match=r"quality_task\.json"):
        load_question(tmp_path)
