import datasets
import pyarrow as pa
import pytest
from datasets import Features, Value, load_from_disk

from q_hawkeye_trl.data.arrow_folder import Shard, WorkFolder, write_index, write_split, write_text

FEATURES = Features({"a": Value("int64"), "b": Value("string")})


def _tables(values, break_after=None):
    for number, value in enumerate(values):
        if number == break_after:
            raise OSError(28, "No space left on device")
        yield pa.table({"a": [value], "b": [None]}, schema=FEATURES.arrow_schema)


def _shards(*parts):
    return [Shard(len(part), lambda part=part: _tables(part)) for part in parts]


def test_shards_are_read_back_in_order_by_datasets(tmp_path):
    write_split(tmp_path, "train", _shards([1, 2], [3], [4, 5, 6]), FEATURES, "0123456789abcdef")
    write_split(tmp_path, "test", _shards([7]), FEATURES, "fedcba9876543210")
    write_index(tmp_path, ["train", "test"])
    data = load_from_disk(tmp_path)
    assert data["train"]["a"][:] == [1, 2, 3, 4, 5, 6]
    assert data["test"]["a"][:] == [7]
    assert data["train"].features == FEATURES
    assert data["train"]._fingerprint != data["test"]._fingerprint
    assert data["train"].filter(lambda row: row["a"] > 4)["a"][:] == [5, 6]  # caches go by the fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset_dict.json", "test", "train"]
    assert not list(tmp_path.rglob("*.partial"))


def test_the_users_progress_bars_stay_as_they_were(tmp_path):
    for wanted in (True, False):
        (datasets.disable_progress_bars if wanted else datasets.enable_progress_bars)()
        write_split(tmp_path / str(wanted), "train", _shards([1]), FEATURES, "0" * 16)
        assert datasets.are_progress_bars_disabled() == wanted


def test_an_error_leaves_whole_shards_only(tmp_path):
    broken = Shard(3, lambda: _tables([4, 5, 6], break_after=2))
    with pytest.raises(OSError, match="No space left"):
        write_split(tmp_path, "train", [*_shards([1, 2, 3]), broken], FEATURES, "0" * 16)
    assert [path.name for path in tmp_path.rglob("*.arrow")] == ["data-00000-of-00002.arrow"]
    made = []

    def first():
        made.append(1)
        yield from _tables([1, 2, 3])

    write_split(tmp_path, "train", [Shard(3, first), *_shards([4, 5, 6])], FEATURES, "0" * 16)
    assert made == []  # the whole one was kept
    write_index(tmp_path, ["train"])
    assert load_from_disk(tmp_path)["train"]["a"][:] == [1, 2, 3, 4, 5, 6]


def test_a_shard_of_another_length_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="2 rows in place of 3"):
        write_split(tmp_path, "train", [Shard(3, lambda: _tables([1, 2]))], FEATURES, "0" * 16)
    assert not list(tmp_path.rglob("*.arrow"))


def test_the_folder_appears_in_one_step_and_the_rest_goes(tmp_path):
    with WorkFolder(tmp_path / "deep" / "out") as work:
        stale, data = work.data("old"), work.data("new")
        write_text(data / "file.txt", "text")
        assert not stale.exists()
        assert not work.out.exists()
        work.finish(data)
    assert (tmp_path / "deep" / "out" / "file.txt").read_text() == "text"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_what_stands_there_is_never_replaced(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="file is a file"):
        WorkFolder(tmp_path / "file")
    with WorkFolder(tmp_path / "out") as work:
        data = work.data("new")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("mine")  # somebody else's, meanwhile
        with pytest.raises(FileExistsError, match="nothing in it is overwritten"):
            work.finish(data)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    assert data.exists()


def test_text_is_whole_or_not_there(tmp_path):
    write_text(tmp_path / "a.txt", "one")
    write_text(tmp_path / "a.txt", "two \udcff")
    assert (tmp_path / "a.txt").read_text() == "two \\udcff"
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path / "taken", "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "taken"]
