"""Nested values with tensors in one safetensors file: what is no tensor stands as JSON in its header."""

import json
import numbers
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

_TREE = "tree"


def save_tree(value: Any, path: str | Path) -> None:
    """
    Writes a nested value. A tensor that occurs several times is written once.

    Args:
        value:
            Lists, tuples, dictionaries with text keys, tensors, numbers, text, booleans and `None`, nested at will.
        path (`str` or `Path`):
            File to write.

    Raises:
        `TypeError`: Something else occurs; the message says where.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = _flatten(value, "value", tensors, {})
    save_file(tensors, path, metadata={_TREE: json.dumps(tree)})


def load_tree(path: str | Path, device: torch.device | str = "cpu") -> Any:
    """
    Reads what [`save_tree`] wrote.

    Args:
        path (`str` or `Path`):
            File.
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`):
            Where the tensors go.

    Returns:
        The value: equal to the bit, and again one tensor where one was.
    """
    with safe_open(path, framework="pt", device="cpu") as file:  # its tensors lie in the file: hence the copy
        tree = json.loads(file.metadata()[_TREE])
        tensors = {name: file.get_tensor(name).to(device, copy=True) for name in list(file.keys())}
    return _build(tree, tensors)


def _flatten(value: Any, where: str, tensors: dict[str, torch.Tensor], seen: dict[tuple, str]) -> Any:
    if isinstance(value, torch.Tensor):
        key = (value.data_ptr(), value.dtype, value.shape, value.stride()) if value.numel() else (where,)
        if key not in seen:
            seen[key] = str(len(seen))
            # a copy of its own: slices of one batch share memory, which the format can't hold
            tensors[seen[key]] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": seen[key]}
    if isinstance(value, dict):
        for name in value:
            if not isinstance(name, str):
                raise TypeError(f"{where} has the key {name!r}, which is no text and can't be saved.")
        return {"dict": {name: _flatten(item, f"{where}[{name!r}]", tensors, seen) for name, item in value.items()}}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_flatten(item, f"{where}[{index}]", tensors, seen) for index, item in enumerate(value)]}
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"{where} is a {type(value).__name__}, which can't be saved without pickle.")


def _build(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {name: _build(item, tensors) for name, item in content.items()}
    items = [_build(item, tensors) for item in content]
    return items if kind == "list" else tuple(items)
