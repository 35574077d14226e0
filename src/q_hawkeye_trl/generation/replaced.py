"""Methods of one object replaced for a while, and put back as they were found."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(target: Any, **methods: Any) -> Iterator[None]:
    """
    Replaces methods of one object, not of its class, while it lasts.

    Args:
        target:
            Object whose methods are looked up on it.
        methods:
            What stands in for each. Afterwards the object has its own ones again, or those of its class where it had
            none.
    """
    found = {name: vars(target)[name] for name in methods if name in vars(target)}
    for name, method in methods.items():
        setattr(target, name, method)
    try:
        yield
    finally:
        for name in methods:
            if name in found:
                setattr(target, name, found[name])
            else:
                delattr(target, name)
