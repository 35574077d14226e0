"""Unfinished scores on disk: found again after a crash at any byte, never twice."""

import pytest
from PIL import Image

from q_hawkeye_trl.scoring.scored import ScoredImage, score_answers
from q_hawkeye_trl.scoring.sources import FileSource
from q_hawkeye_trl.scoring.unfinished import UnfinishedScores

SETTINGS = {"model": "m", "rollouts": None, "score_min": 1.0}


@pytest.fixture
def sources(tmp_path) -> list[FileSource]:
    found = []
    for number in range(6):
        path = tmp_path / f"{number}.png"
        Image.new("L", (8, 8), number).save(path)
        found.append(FileSource(str(path)))
    return found


def scored(source: FileSource, value: float = 2.5) -> ScoredImage:
    return score_answers(source.name, [f"<think>“é”\n</think><answer>{value}</answer>", "?"])


def journal_of(tmp_path) -> UnfinishedScores:
    journal = UnfinishedScores(tmp_path / "out.jsonl.partial")
    journal.start(SETTINGS)
    return journal


def append(journal: UnfinishedScores, sources, value: float = 2.5) -> None:
    journal.append(0, ((source, source.stamp(), scored(source, value)) for source in sources))


def test_scores_come_back_as_they_were_in_the_order_of_the_images(tmp_path, sources):
    journal = journal_of(tmp_path)
    append(journal, sources[::-2])
    journal.append(1, ((s, s.stamp(), ScoredImage(s.name, error="broken")) for s in sources[::2]))
    assert not journal.missing(sources)
    expected = [scored(s) if n % 2 else ScoredImage(s.name, error="broken") for n, s in enumerate(sources)]
    assert list(journal.scored(sources)) == expected


def test_a_crash_at_any_byte_loses_the_last_line_alone(tmp_path, sources):
    journal = journal_of(tmp_path)
    append(journal, sources)
    file = journal.folder / "scores-0.jsonl"
    whole = file.read_bytes()
    ends = [0] + [place + 1 for place, byte in enumerate(whole) if byte == 10]
    assert len(ends) == 7
    for cut in [*range(0, len(whole), 13), *ends, *(end - 1 for end in ends[1:])]:
        file.write_bytes(whole[:cut])
        left = sum(end <= cut for end in ends) - 1
        assert list(journal.missing(sources)) == list(range(left, 6))
        append(journal, sources[left:])
        assert file.read_bytes() == whole


def test_a_changed_image_is_scored_again_and_the_later_line_counts(tmp_path, sources):
    journal = journal_of(tmp_path)
    append(journal, sources)
    Image.new("L", (9, 9)).save(sources[3].path)
    assert list(journal.missing(sources)) == [3]
    append(journal, sources[3:4], 4.0)
    assert not journal.missing(sources)
    assert [each.score for each in journal.scored(sources)] == [2.5, 2.5, 2.5, 4.0, 2.5, 2.5]


def test_an_image_that_changes_while_it_is_scored_is_scored_again(tmp_path, sources):
    """What was read may be the old picture or the new one, so neither counts."""
    journal = journal_of(tmp_path)
    before = journal.missing(sources)

    def entries():
        for number, source in enumerate(sources):
            if number == 2:
                Image.new("L", (9, 9)).save(source.path)
            yield source, before[number], scored(source)

    journal.append(0, entries())
    assert list(journal.missing(sources)) == [2]


def test_a_damaged_line_is_named(tmp_path, sources):
    journal = journal_of(tmp_path)
    append(journal, sources[:2])
    file = journal.folder / "scores-0.jsonl"
    whole = file.read_bytes()
    place = whole.index(b"\n") + 1
    for damaged in (b"\0" * 20 + b"\n", b"[1]\n", b'{"key": "a"}\n'):
        file.write_bytes(whole[:place] + damaged)
        with pytest.raises(ValueError, match=r"scores-0\.jsonl.*--overwrite"):
            journal.missing(sources)


def test_each_score_is_on_disk_before_the_next_is_made(tmp_path, sources):
    journal = journal_of(tmp_path)

    def entries():
        for number, source in enumerate(sources):
            assert len(journal.lines()) == number
            yield source, source.stamp(), scored(source)

    journal.append(0, entries())


def test_other_settings_are_refused_by_name_once_there_are_scores(tmp_path, sources):
    journal = journal_of(tmp_path)
    journal.start(SETTINGS | {"model": "other"})  # nothing is lost yet
    journal.start(SETTINGS)
    append(journal, sources[:1])
    journal.start(SETTINGS)
    with pytest.raises(ValueError, match=r"rollouts None, now 8; score_min 1\.0, now 0\.0.*--overwrite"):
        journal.start(SETTINGS | {"rollouts": 8, "score_min": 0.0})
    assert len(journal.lines()) == 1


def test_a_folder_of_somebody_else_is_left_alone(tmp_path, sources):
    journal = UnfinishedScores(tmp_path / "out.jsonl.partial")
    journal.folder.mkdir()
    (journal.folder / "thesis.tex").write_text("years of work")
    for step in (lambda: journal.start(SETTINGS), journal.remove):
        with pytest.raises(ValueError, match=r"thesis\.tex"):
            step()
    assert [path.name for path in journal.folder.iterdir()] == ["thesis.tex"]


def test_removing(tmp_path, sources):
    journal = journal_of(tmp_path)
    append(journal, sources[:1])
    journal.remove()
    assert not journal.folder.exists()
    journal.remove()
