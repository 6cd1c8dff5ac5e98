"""Builds dataclasses from plain YAML values. Errors name the key."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import reprlib
import types
import typing
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from ..errors import UserError
from ..nn._common import did_you_mean

T = TypeVar("T")


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used. The message is one sentence that names the key."""


def parse(kind: type[T], data: Any, where: str = "") -> T:
    """Build a dataclass from nested dicts and lists.

    A class with a ``name`` field also accepts just the name: ``user`` means ``{name: user}``.

    Args:
        kind: the dataclass.
        data: the value that was read from YAML.
        where: the key of ``data``, for messages.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type.
    """
    hints = typing.get_type_hints(kind)
    if isinstance(data, str) and "name" in hints:
        data = {"name": data}
    if not isinstance(data, dict):
        raise ConfigError(f"{where or kind.__name__}: wanted keys and values, got {shown(data)}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    values = {}
    for key, value in data.items():
        if key not in fields:
            hint = did_you_mean(key, fields) or f"; known keys: {', '.join(fields)}"
            raise ConfigError(f"unknown key '{_join(where, key)}'{hint}")
        values[key] = _value(hints[key], value, _join(where, key))
    for name, field in fields.items():
        no_default = dataclasses.MISSING in (field.default, field.default_factory)
        no_default = no_default and field.default is field.default_factory
        if no_default and name not in values:
            raise ConfigError(f"missing key '{_join(where, name)}'")
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from None


def shown(value: Any) -> str:
    """A value for a message, of bounded length: a few aliases of aliases stand for terabytes."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 3, 100, 100
    return short.repr(value)


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _value(next(i for i in inner if i is not type(None)), value, where)
    if origin is typing.Literal:
        if isinstance(value, bool):  # YAML reads a bare on or off as a bool
            value = "on" if value else "off"
        if value not in inner:
            hint = did_you_mean(value, map(str, inner)) if isinstance(value, str) else ""
            wanted = ", ".join(map(repr, inner))
            raise ConfigError(f"{where}: wanted one of {wanted}, got {shown(value)}{hint}")
        return value
    if origin is list:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: wanted a list, got {shown(value)}")
        return [_value(inner[0], v, f"{where}[{i}]") for i, v in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: wanted keys and values, got {shown(value)}")
        return {k: _value(inner[1], v, _join(where, k)) for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else parse(hint, value, where)
    return _plain(hint, value, where)


def _plain(hint: type, value: Any, where: str) -> Any:
    """Check a bool, int, float or str.

    A whole number is accepted as a float, and so is ``1e-3``, which YAML reads as text.
    """
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            value = float(value)
    if hint is float and isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: wanted a finite number, got {value}")
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        raise ConfigError(f"{where}: wanted {names[hint]}, got {shown(value)}")
    return value


def refuse_twice(what: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{what}: '{name}' occurs more than once")


def check_at_least(least: float, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value >= least:
            raise ConfigError(f"{name}: wanted {least} or more, got {value}")


def check_share(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ConfigError(f"{name}: wanted a number in [0, 1), got {value}")


def refuse_unknown(where: str, what: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise ConfigError(f"{where}: no {what} '{name}'{did_you_mean(name, known)}")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read the keys and values of a YAML file.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or does not hold keys and values.
    """
    import yaml

    try:
        data = yaml.load(Path(path).read_text(encoding="utf-8"), _loader(yaml)) or {}
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deeply") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise ConfigError(f"{path}{line}: {problem}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: wanted keys and values, got {shown(data)}")
    return data


@cache
def _loader(yaml: Any) -> type:
    """PyYAML's safe loader, which takes the last of two equal keys, made to refuse them."""

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            keys = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in keys:
                    text = f"key '{key.value}' occurs twice"
                    raise yaml.constructor.ConstructorError(None, None, text, key.start_mark)
                keys.add(getattr(key, "value", None) if isinstance(key, yaml.ScalarNode) else None)
            return super().construct_mapping(node, deep)

    return Loader


def override(data: dict, key: str, text: str) -> None:
    """Set ``a.b.c`` in nested dicts to a value given as YAML text.

    Raises:
        ConfigError: a part of the key holds a plain value, or the text is not YAML.
    """
    import yaml

    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"key '{key}': {text[:100]!r} is not a YAML value") from error
    put(data, key, value)


def put(data: dict, key: str, value: Any) -> None:
    """Set ``a.b.c`` in nested dicts.

    Raises:
        ConfigError: a part of the key holds a plain value.
    """
    *path, last = key.split(".")
    for i, part in enumerate(path):
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise ConfigError(f"key '{key}': '{'.'.join(path[: i + 1])}' has no keys of its own")
    data[last] = value
