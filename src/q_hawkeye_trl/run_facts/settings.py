"""The resolved settings of a run as JSON, without secrets."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

HIDDEN = "<hidden>"
"""Replaces a secret."""

_SECRET = {"password", "passwd", "passphrase", "secret", "secrets", "credential", "credentials", "apikey"}
_SECRET |= {"authorization", "cookie", "bearer"}
_MAYBE = {"token", "tokens", "key", "keys", "auth"}  # also in names of plain numbers: max_tokens
_NO_SECRETS = {"include_num_input_tokens_seen"}  # texts like "no"
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_USER_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_NAMED_VALUE = re.compile(
    r"(?i)\b([\w-]*(?:token|key|password|passwd|secret|auth)[\w-]*=)[^&\s]+"
)  # of an address's query or a command line
_TOKENS = re.compile(r"\b(?:hf|sk|gh[opsu]|github_pat|xox[abp]|wandb)[_-][A-Za-z0-9_-]{16,}|(?<=Bearer )\S+")


def hide_secrets(value: Any, name: str = "") -> Any:
    """
    Replace secrets in settings by `"<hidden>"`.

    Args:
        value (`Any`):
            Anything that JSON can hold. Values under a name like `api_key` or `password`, the user in an address, and
            texts that look like a token are secrets. `None` and empty values are kept.
        name (`str`, *optional*, defaults to `""`):
            Key of the value. Numbers and booleans under a name with `token` or `key` are kept (`max_tokens`), but not
            under one with `password` or `secret`.

    Returns:
        `Any`: The same structure.
    """
    words = {word.lower() for word in _WORDS.findall(name)}
    if value in (None, "", [], {}):
        return value
    if words & _SECRET or (words & _MAYBE and name not in _NO_SECRETS and not isinstance(value, bool | int | float)):
        return HIDDEN
    if isinstance(value, Mapping):
        return {key: hide_secrets(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [hide_secrets(item, name) for item in value]
    return _hide_in_text(value) if isinstance(value, str) else value


def _hide_in_text(text: str) -> str:
    if text.lstrip().startswith(("{", "[")):  # dictionaries come from the command line as JSON
        try:
            return json.dumps(hide_secrets(json.loads(text)))
        except ValueError:
            pass
    text = _USER_IN_ADDRESS.sub(HIDDEN, text)
    text = _NAMED_VALUE.sub(rf"\1{HIDDEN}", text)
    return _TOKENS.sub(HIDDEN, text)


def hide_secret_options(words: Sequence[str]) -> list[str]:
    """Replace secrets on a command line of `--name value` and `--name=value`, by the rules of [`hide_secrets`]."""
    shown, name = [], ""
    for word in words:
        is_option = word.startswith("--")
        is_number = word in ("true", "false") or word.replace(".", "", 1).isdigit()
        hidden = hide_secrets(0 if is_number else word, "" if is_option else name)
        shown.append(word if hidden == 0 else hidden)
        name = word.removeprefix("--") if is_option else name
    return shown


def settings_of(settings: Any) -> dict[str, Any]:
    """List all settings of a dataclass as JSON can hold them, with secrets hidden."""
    fields = [field.name for field in dataclasses.fields(settings) if not field.name.startswith("_")]
    return {name: hide_secrets(plain(getattr(settings, name)), name) for name in fields}


def changed_settings(settings: Any) -> list[str]:
    """Name the settings that differ from their defaults, also those derived from others."""
    changed = []
    for field in dataclasses.fields(settings):
        if field.name.startswith("_"):
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if default is dataclasses.MISSING or plain(getattr(settings, field.name)) != plain(default):
            changed.append(field.name)
    return changed


def plain(value: Any) -> Any:
    """Convert a value to JSON's types: enums by value, paths as text, other objects as their type's name."""
    if value is None or (isinstance(value, bool | int | str) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Path) or type(value).__module__ == "torch":  # torch.dtype, torch.device
        return str(value)
    return f"<{type(value).__module__}.{type(value).__qualname__}>"
