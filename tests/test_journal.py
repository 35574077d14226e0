"""Unfinished scores on disk: found again after a crash at any byte, never twice."""

import pytest
from PIL import Image

from q_hawkeye_trl.scoring.journal import Journal
from q_hawkeye_trl.scoring.scored import ScoredImage, score_answers
from q_hawkeye_trl.scoring.sources import FileSource

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


def journal_of(tmp_path) -> Journal:
    journal = Journal(tmp_path / "out.jsonl.partial")
    journal.start(SETTINGS)
    return journal


def test_scores_come_back_as_they_were_in_the_order_of_the_images(tmp_path, sources):
    journal = journal_of(tmp_path)
    journal.append(0, ((source, scored(source)) for source in sources[::-2]))
    journal.append(1, ((source, ScoredImage(source.name, error="broken")) for source in sources[::2]))
    assert journal.missing(sources) == []
    expected = [scored(s) if n % 2 else ScoredImage(s.name, error="broken") for n, s in enumerate(sources)]
    assert list(journal.scored(sources)) == expected


def test_a_crash_at_any_byte_loses_the_last_line_alone(tmp_path, sources):
    journal = journal_of(tmp_path)
    journal.append(0, ((source, scored(source)) for source in sources))
    file = journal.folder / "scores-0.jsonl"
    whole = file.read_bytes()
    ends = [0] + [place + 1 for place, byte in enumerate(whole) if byte == 10]
    assert len(ends) == 7
    for cut in [*range(0, len(whole), 13), *ends, *(end - 1 for end in ends[1:])]:
        file.write_bytes(whole[:cut])
        left = sum(end <= cut for end in ends) - 1
        assert journal.missing(sources) == list(range(left, 6))
        journal.append(0, ((source, scored(source)) for source in sources[left:]))
        assert file.read_bytes() == whole


def test_a_changed_image_is_scored_again_and_the_later_line_counts(tmp_path, sources):
    journal = journal_of(tmp_path)
    journal.append(0, ((source, scored(source)) for source in sources))
    Image.new("L", (9, 9)).save(sources[3].path)
    assert journal.missing(sources) == [3]
    journal.append(0, [(sources[3], scored(sources[3], 4.0))])
    assert journal.missing(sources) == []
    assert [each.score for each in journal.scored(sources)] == [2.5, 2.5, 2.5, 4.0, 2.5, 2.5]


def test_each_score_is_on_disk_before_the_next_is_made(tmp_path, sources):
    journal = journal_of(tmp_path)

    def entries():
        for number, source in enumerate(sources):
            assert len(journal.lines()) == number
            yield source, scored(source)

    journal.append(0, entries())


def test_other_settings_are_refused_by_name_once_there_are_scores(tmp_path, sources):
    journal = journal_of(tmp_path)
    journal.start(SETTINGS | {"model": "other"})  # nothing is lost yet
    journal.start(SETTINGS)
    journal.append(0, [(sources[0], scored(sources[0]))])
    journal.start(SETTINGS)
    with pytest.raises(ValueError, match=r"rollouts None, now 8; score_min 1\.0, now 0\.0.*--overwrite"):
        journal.start(SETTINGS | {"rollouts": 8, "score_min": 0.0})
    assert len(journal.lines()) == 1


def test_removing(tmp_path, sources):
    journal = journal_of(tmp_path)
    journal.append(0, [(sources[0], scored(sources[0]))])
    journal.remove()
    assert not journal.folder.exists()
    journal.remove()
