"""Settings: checked values, and errors of one line that name the setting, its value and what is allowed."""

import copy
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

T = TypeVar("T")
LARGEST_SEED = 2**32 - 1  # what numpy's and Optuna's generators take
_KINDS: dict[Any, str] = {
    type(None): "null", str: "text", int: "a whole number", float: "a number", bool: "true or false",
    dict: "a group of settings", list: "a list", tuple: "a list", Sequence: "a list",
}  # fmt: skip


class SettingError(ValueError):
    """A setting has a value that is not allowed. The message is one line: name, value, what is allowed."""

    def __init__(self, name: str, value: object, allowed: str) -> None:
        self.name, self.value, self.allowed = name, value, allowed
        super().__init__(hidden(f"{name} = {value!r}: {allowed}"))

    def under(self, prefix: str) -> "SettingError":
        """The same error with the path of the enclosing setting in front of the name."""
        return SettingError(f"{prefix}.{self.name}", self.value, self.allowed)


_SECRET = r"(?i)(\w*(?:password|passwd|passphrase|pwd|secret|token|api_?key|keypass|credential)\w*=)[^&\s'\"]+"


def hidden(text: str) -> str:
    """A text without the passwords in its addresses, whatever their encoding."""

    def shown(found: re.Match[str]) -> str:
        plain = found[0]
        for _ in range(3):
            plain = unquote(plain)
        user = r"(?i)(https?|grpc)://.*@|//.*:.*@"  # up to the last @, as database libraries read it
        return f"{found[1]}://***" if re.search(user, plain) or re.search(_SECRET, plain) else found[0]

    text = re.sub(r"(?i)([\w+.-]+)(?::|%3a)(?:/|%2f){2}[^\s'\"]*", shown, text)
    return re.sub(_SECRET, r"\1***", text)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters; its type if it has no message."""
    return hidden((str(error).strip() or type(error).__name__).splitlines()[0])[:200]


def folder_named(name: str, value: object) -> Path:
    """The folder that a setting names; `~` is the user's home.

    Raises:
        SettingError: the value is neither text nor a path, or there is no such home.
    """
    value = str(value) if isinstance(value, Path) else value
    if not isinstance(value, str) or not value:
        raise SettingError(name, value, "must be a folder")
    try:
        return Path(value).expanduser()
    except RuntimeError:  # a user without a home, or no such user
        raise SettingError(name, value, "there is no such home folder; write it out") from None


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raises SettingError unless `value` is one of `choices`."""
    if value not in choices:
        raise SettingError(name, value, f"must be one of {', '.join(choices)}")


def check_number(
    name: str, value: object, low: float, high: float = math.inf, *, above: bool = False, whole: bool = False
) -> None:
    """Raises SettingError unless `value` is a finite (or whole) number from `low`, or above it, to `high`."""
    kind = "a whole number" if whole else "a finite number"
    bound = f"{'above' if above else 'of at least'} {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
    bound = "" if (low, high) == (-math.inf, math.inf) else bound
    good = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not good or not math.isfinite(value) or not low <= value <= high or (above and value == low):  # type: ignore[arg-type, operator]
        raise SettingError(name, value, f"must be {kind} {bound}".strip())


def build(kind: type[T], values: Mapping[str, Any], group: str = "") -> T:
    """A settings dataclass, with nested ones, from plain values. The dataclass checks itself in `__post_init__`.

    Args:
        group: the name of the enclosing setting, which errors put in front of the setting's name.

    Raises:
        SettingError: a name is unknown or missing, or a value has the wrong type or is out of range.
    """
    try:
        return _build(kind, values)
    except SettingError as error:
        raise (error.under(group) if group else error) from None


_hints: Callable[[Any], dict[str, Any]] = lru_cache(typing.get_type_hints)


def _build(kind: type[T], values: Mapping[str, Any]) -> T:
    hints = _hints(kind)
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise SettingError("settings", values, "must be a group of settings")
    for name in values:
        if name not in known:
            raise SettingError(str(name), values[name], f"unknown setting; known are {', '.join(known)}")
    arguments: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name in values:
            arguments[field.name] = _convert(field.name, values[field.name], hints[field.name])
        elif field.default is MISSING and field.default_factory is MISSING:
            raise SettingError(field.name, None, "is required")
    return kind(**arguments)


def defaults(kind: type[Any]) -> dict[str, Any]:
    """The settings of a dataclass that have a default, as plain values. This is where the defaults of `conf` are."""
    found: dict[str, Any] = {}
    for field in fields(kind):
        if field.default is not MISSING:
            found[field.name] = _plain(field.default)
        elif field.default_factory is not MISSING:
            found[field.name] = _plain(field.default_factory())
    return found


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return list(value) if isinstance(value, tuple) else copy.deepcopy(value)


def check_complete(kind: type[Any], values: Mapping[str, Any]) -> None:
    """Raises SettingError if a setting of a dataclass is missing, also one with a default: somebody deleted it."""
    for field in fields(kind):
        if field.name not in values:
            raise SettingError(field.name, None, "is required")


def build_named(group: str, kinds: Mapping[str, type[T]], values: Mapping[str, Any]) -> T:
    """The dataclass that `values["name"]` names, from the other values. Errors name the group.

    Raises:
        SettingError: the name is unknown, or an error of `build`.
    """
    if not isinstance(values, Mapping):
        raise SettingError(group, values, "must be a group of settings")
    settings = dict(values)
    name = settings.pop("name", None)
    check_choice(f"{group}.name", name, list(kinds))
    return build(kinds[str(name)], settings, group)


def _convert(name: str, value: Any, hint: Any) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    for option in options:
        origin = typing.get_origin(option) or option
        if is_dataclass(option):
            if not isinstance(value, Mapping):
                raise SettingError(
                    name, value, f"must be a group of settings{' or null' if type(None) in options else ''}"
                )
            return build(typing.cast(type[Any], option), value, name)
        if origin is tuple and isinstance(value, Sequence) and not isinstance(value, str):
            return tuple(value)
        if origin is dict and isinstance(value, Mapping):
            return dict(value)
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if isinstance(origin, type) and isinstance(value, origin) and (option is bool or not isinstance(value, bool)):
            return value
    names = dict.fromkeys(_KINDS.get(typing.get_origin(one) or one, str(one)) for one in options)
    raise SettingError(name, value, f"must be {' or '.join(names)}")
