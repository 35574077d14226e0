"""What is saved comes back equal to the bit, whatever its nesting, types and shared memory."""

import math

import pytest
import torch
from safetensors import safe_open

from q_hawkeye_trl.checkpointing.tensor_tree import load_tree, save_tree


def test_a_batch_comes_back_as_it_was(tmp_path):
    shared = torch.randn(6, 4)
    batch = {
        "pixels": [shared[:2], shared[2:5], shared[:2]],
        "half": torch.randn(3).bfloat16(),
        "mask": torch.tensor([[True, False]]),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "transposed": shared.T,
        "num_images": [1, 0, 2],
        "pair": (1.5, None),
        "odd": [math.inf, -0.0, 1e-300, "text", True, {}],
    }
    save_tree([batch, {"ids": torch.arange(3)}], tmp_path / "t.safetensors")
    loaded, second = load_tree(tmp_path / "t.safetensors")
    assert torch.equal(second["ids"], torch.arange(3))
    assert loaded.keys() == batch.keys()
    for name in ("half", "mask", "count", "empty", "transposed"):
        assert loaded[name].dtype == batch[name].dtype
        assert torch.equal(loaded[name], batch[name])
    assert all(torch.equal(a, b) for a, b in zip(loaded["pixels"], batch["pixels"], strict=True))
    assert loaded["pixels"][0] is loaded["pixels"][2]  # once a group, as before
    for name in ("num_images", "pair", "odd"):
        assert loaded[name] == batch[name]
        assert type(loaded[name]) is type(batch[name])
    with safe_open(tmp_path / "t.safetensors", framework="pt") as file:
        assert len(list(file.keys())) == 8


@pytest.mark.parametrize(("value", "where"), [({"a": [1, {2}]}, r"value\['a'\]\[1\] is a set"), ({1: 2}, "key 1")])
def test_what_cannot_be_saved_is_named(tmp_path, value, where):
    with pytest.raises(TypeError, match=where):
        save_tree(value, tmp_path / "t.safetensors")
    assert not (tmp_path / "t.safetensors").exists()
