"""Plain values (of YAML, JSON or a command line) into frozen dataclasses, with errors that help.

Pydantic checks keys and kinds; the dataclasses check their own ranges by raising ValueError on
construction. Every error names its source and key, what was got and what was expected.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from medisseg.errors import UserError

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

T = TypeVar("T")
_ADAPTERS: dict[type, TypeAdapter[Any]] = {}
LONGEST_SHOWN = 300  # characters of a wrong value
Json = dict[str, Any]  # a table of JSON or YAML, as it was read
Tree = dict[int | str, Any]  # tables and, by their numbers, lists
# Pydantic's names of wrong kinds begin with these; what a person calls them.
KINDS = {
    "int": "int", "float": "float", "bool": "bool", "string": "str", "path": "str",
    "tuple": "list", "dict": "a table of keys", "dataclass": "a table of keys",
}  # fmt: skip


def require(condition: bool, message: str) -> None:
    """Raise ValueError with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ValueError(message)


def one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``allowed``; the nearest is named."""
    require(value in allowed, not_one_of(name, value, allowed))


def not_one_of(name: str, value: str, allowed: Sequence[str]) -> str:
    """Return the message about a value that is none of ``allowed``, with the nearest of them.

    Example:
        >>> not_one_of("precision", "pf16", ("fp16", "fp32"))
        "precision is 'pf16'; expected one of fp16, fp32; did you mean fp16?"
    """
    lower = {known.lower(): known for known in allowed}
    close = difflib.get_close_matches(value.lower(), lower, n=1)
    hint = f"; did you mean {lower[close[0]]}?" if close else ""
    return f"{name} is {value!r}; expected one of {', '.join(allowed)}{hint}"


def probabilities(config: object) -> None:
    """Raise ValueError unless every field named ``*_p`` lies within [0, 1]."""
    for name, value in vars(config).items():
        if name.endswith("_p"):
            require(0 <= value <= 1, f"{name} is {value}; expected within [0, 1]")


def build(kind: type[T], values: object, source: str) -> T:
    """Return an instance of a dataclass, its nested dataclasses included.

    Args:
        kind: The dataclass.
        values: Json of its fields; those left out take their defaults. A value stands for a
            list of one, a number for a text.
        source: What errors begin with, such as the file's name.

    Raises:
        UserError: An unknown key (the nearest known one is named), or a wrong kind or range.
    """
    from pydantic import ValidationError

    adapter = _adapter(kind)
    tree: Tree = {"": json.loads(json.dumps(values, default=str))}
    while True:
        try:
            # As JSON: its strict reading takes lists for tuples, and else nothing for another.
            return adapter.validate_json(json.dumps(tree[""]), strict=True, extra="forbid")
        except ValidationError as error:
            found = error.errors()
        if not any([_repaired(tree, one) for one in found]):
            raise UserError(f"{source}: {_sentence(kind, found[0])}")


def _adapter(kind: type[T]) -> TypeAdapter[T]:
    """Return what reads a dataclass, made once: that takes longer than reading (20 ms)."""
    from pydantic import TypeAdapter

    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def _repaired(tree: Tree, found: ErrorDetails) -> bool:
    """Mend a wrong kind that can only mean one thing; return whether it was one."""
    kind, value = found["type"], found["input"]
    new: object
    if kind == "tuple_type":
        new = [value]
    elif kind == "string_type" and type(value) in (int, float):
        new = str(value)
    elif kind == "float_type" and isinstance(value, str):
        try:  # YAML 1.1 reads 1e-4 as a string
            new = float(value)
        except ValueError:
            return False
    else:
        return False
    *path, last = ("", *found["loc"])
    for key in path:
        tree = tree[key]
    tree[last] = new
    return True


def _sentence(kind: type, found: ErrorDetails) -> str:
    """Say one error of pydantic's as: where, what was got, what was expected."""
    what, at = found["type"], found["loc"]
    where = ".".join(part for part in at if isinstance(part, str))
    if what == "value_error":
        return f"{where}{'.' if where else ''}{found['ctx']['error']}"
    if what == "unexpected_keyword_argument":
        known = [item.name for item in dataclasses.fields(_hint(kind, at[:-1]))]
        near = difflib.get_close_matches(str(at[-1]), known, n=1, cutoff=0.0)[0]
        return f"unknown key {where!r}; did you mean {near!r}?"
    if what in ("too_long", "too_short") or (what == "missing" and isinstance(at[-1], int)):
        at = at if what != "missing" else at[:-1]
        count = len(typing.get_args(_hint(kind, at)))
        return f"{where} is {_short(found['input'])}; expected {count} values{_such_as(kind, at)}"
    if what == "missing":
        return f"{where} is missing; expected a value"
    expected = KINDS.get(what.split("_")[0], found["msg"])
    return f"{where or 'file'} is {_short(found['input'])}; expected {expected}{_such_as(kind, at)}"


def _such_as(kind: type, at: Sequence[int | str]) -> str:
    """Return ", such as ..." with the default of a field of numbers; empty where it has none."""
    if not at or not isinstance(at[-1], str):
        return ""
    fields = {item.name: item for item in dataclasses.fields(_hint(kind, at[:-1]))}
    default = fields[at[-1]].default
    if isinstance(default, bool) or not isinstance(default, int | float | tuple) or default == ():
        return ""
    return f", such as {json.dumps(default)}"


def _short(value: object) -> str:
    """Return a value as text, of a long one the beginning."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _hint(kind: type, at: Iterable[int | str]) -> Any:
    """Return the annotated type at a place within a dataclass, without its "or None"."""
    found: Any = kind
    for key in at:
        arguments = typing.get_args(found)
        if dataclasses.is_dataclass(found):
            found = typing.get_type_hints(found)[str(key)]
        else:  # a tuple, or a table
            each = isinstance(key, int) and Ellipsis not in arguments
            found = arguments[int(key)] if each else arguments[0]
        parts = [part for part in typing.get_args(found) if part is not type(None)]
        if type(None) in typing.get_args(found):
            found = parts[0]
    return found


def plain(value: Any) -> Any:
    """Return a copy with lists for tuples, no table shared."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def merge(base: Json, over: Json) -> Json:
    """Return ``base`` with the values of ``over``, nested tables merged; neither is changed."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged
