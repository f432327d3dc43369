"""Plain values (of YAML or JSON) into frozen dataclasses and back, with errors that help.

The dataclasses check their own ranges by raising ValueError on construction; here the keys and
the kinds of the values are checked, and every error names its source and key.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from typing import Any

from medisseg.errors import UserError


def require(condition: bool, message: str) -> None:
    """Raise ValueError with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ValueError(message)


def one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``allowed``."""
    require(value in allowed, f"{name} is {value!r}; expected one of {', '.join(allowed)}")


def probabilities(config: Any) -> None:
    """Raise ValueError unless every field named ``*_p`` lies within [0, 1]."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if item.name.endswith("_p"):
            require(0 <= value <= 1, f"{item.name} is {value}; expected within [0, 1]")


def build(kind: type, values: Any, source: str, prefix: str = "") -> Any:
    """Return an instance of a dataclass, its nested dataclasses included.

    Args:
        kind: The dataclass.
        values: Table of its fields; those left out take their defaults.
        source: What errors begin with, such as the file's name.
        prefix: Dotted key of ``values`` within the source.

    Raises:
        UserError: An unknown key (the nearest known one is named), or a wrong kind or range.
    """
    if not isinstance(values, dict):
        raise UserError(f"{source}: {prefix or 'file'} is {values!r}; expected a table of keys")
    known = [item.name for item in dataclasses.fields(kind)]
    hints = typing.get_type_hints(kind)
    filled = {}
    for key, value in values.items():
        where = f"{prefix}.{key}" if prefix else str(key)
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            raise UserError(f"{source}: unknown key {where!r}; did you mean {near!r}?")
        filled[key] = _convert(hints[key], value, source, where)
    try:
        return kind(**filled)
    except ValueError as error:
        raise UserError(f"{source}: {prefix + '.' if prefix else ''}{error}") from error


def _convert(hint: Any, value: Any, source: str, key: str) -> Any:
    """Return ``value`` as the annotated type, or raise a UserError that says what was expected."""
    where = f"{source}: {key}"
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, source, key)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        kind = next(part for part in arguments if part is not types.NoneType)
        return _convert(kind, value, source, key)
    if origin is tuple:
        parts = value if isinstance(value, list | tuple) else [value]
        fixed = arguments[-1] is not Ellipsis
        if fixed and len(parts) != len(arguments):
            raise UserError(f"{where} is {value!r}; expected {len(arguments)} values")
        kinds = arguments if fixed else [arguments[0]] * len(parts)
        pairs = zip(kinds, parts, strict=True)
        return tuple(_convert(kind, part, source, key) for kind, part in pairs)
    kind = origin or hint
    if kind is float and isinstance(value, str | int) and not isinstance(value, bool):
        try:  # YAML 1.1 reads 1e-4 as a string
            return float(value)
        except ValueError:
            pass
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{where} is {value!r}; expected {kind.__name__}")
    return value


def plain(value: Any) -> Any:
    """Return a copy with lists for tuples, no table shared."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the values of ``over``, nested tables merged; neither is changed."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged
