import pyarrow as pa
import pytest
from datasets import DatasetInfo, Features, Value, load_from_disk

from q_hawkeye_trl.data.arrow_folder import Shard, write_arrow, write_index, write_split, write_split_files

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
    assert data["train"].split == "train"
    assert data["train"]._fingerprint != data["test"]._fingerprint
    assert data["train"].filter(lambda row: row["a"] > 4)["a"][:] == [5, 6]  # caches go by the fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset_dict.json", "test", "train"]
    assert not list(tmp_path.rglob("*.partial"))


def test_a_folder_without_splits_keeps_its_description(tmp_path):
    write_arrow(tmp_path / "a.arrow", _tables([1]), FEATURES, 1)
    info = DatasetInfo(description="mine", dataset_size=7)
    write_split_files(tmp_path, ["a.arrow"], FEATURES, "0" * 16, info=info)
    data = load_from_disk(tmp_path)
    assert data["a"][:] == [1]
    assert data.split is None
    assert data.info.description == "mine"
    assert data.info.dataset_size is None


def test_an_error_leaves_complete_shards_only(tmp_path):
    broken = Shard(3, lambda: _tables([4, 5, 6], break_after=2))
    with pytest.raises(OSError, match="No space left"):
        write_split(tmp_path, "train", [*_shards([1, 2, 3]), broken], FEATURES, "0" * 16)
    assert [path.name for path in (tmp_path / "train").iterdir()] == ["data-00000-of-00002.arrow"]
    kept = Shard(3, lambda: pytest.fail("the complete shard is written again"))
    write_split(tmp_path, "train", [kept, *_shards([4, 5, 6])], FEATURES, "0" * 16)
    write_index(tmp_path, ["train"])
    assert load_from_disk(tmp_path)["train"]["a"][:] == [1, 2, 3, 4, 5, 6]


def test_a_shard_of_another_length_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"arrow.*2.*3"):
        write_split(tmp_path, "train", [Shard(3, lambda: _tables([1, 2]))], FEATURES, "0" * 16)
    assert not list(tmp_path.rglob("*.arrow"))
