"""The signatures of TensorRT's real bindings, and whether a call fits one of them.

pybind11 writes every overload into a docstring. ``dump`` collects them from an imported module;
``Signatures`` refuses a call that no overload would take, and a name that a version does not have.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CALL = re.compile(r"^(?:\d+\. )?(\w+)\((.*)\) -> (.+)$", re.MULTILINE)
NUMBERS = ("int", "typing.SupportsInt", "SupportsInt")
BUFFERS = ("buffer", "typing_extensions.Buffer", "collections.abc.Buffer")


def dump(trt: Any) -> dict[str, dict[str, Any]]:
    """Return class -> member -> its "calls", whether it "reads" and "writes", or its "value"."""
    found: dict[str, dict[str, Any]] = {"": {name: {} for name in dir(trt)}}
    for name in dir(trt):
        kind = getattr(trt, name)
        if not isinstance(kind, type):
            continue
        members = found.setdefault(name, {})
        values = getattr(kind, "__members__", {})
        for member in dir(kind):
            thing = getattr(kind, member)
            if member in values:
                members[member] = {"value": int(thing)}
            elif isinstance(thing, property):
                members[member] = {
                    "reads": thing.fget is not None,
                    "writes": thing.fset is not None,
                }
            elif member == "__init__" or not member.startswith("__"):
                members[member] = {"calls": [list(m) for m in CALL.findall(thing.__doc__ or "")]}
    return found


class Signatures:
    """What one version of the bindings has.

    Args:
        found: What :func:`dump` returned.
    """

    def __init__(self, found: dict[str, dict[str, Any]]) -> None:
        self.found = found

    def has(self, name: str) -> bool:
        """Whether "Class", "function" or "Class.member" exists."""
        owner, _, member = name.rpartition(".")
        return member in self.found.get(owner, {})

    def check(self, owner: str, name: str, args: Iterable[Any], named: dict[str, Any]) -> None:
        """Raise TypeError as pybind11 does when no overload of a method takes the arguments."""
        if not self.has(f"{owner}.{name}"):
            raise AttributeError(f"{owner} has no {name}")
        calls = self.found[owner][name].get("calls")
        if not calls:
            raise TypeError(f"{owner}.{name} is no method")
        values = list(args)
        if not any(_fits(call[1], values, named) for call in calls):
            shown = "\n".join(f"  {name}({call[1]})" for call in calls)
            raise TypeError(f"{owner}.{name}{tuple(values)} {named} fits none of\n{shown}")


def _fits(parameters: str, values: list[Any], named: dict[str, Any]) -> bool:
    wanted = [part for part in _split(parameters) if not part.startswith("self")]
    left = dict(named)
    for position, part in enumerate(wanted):
        name, _, rest = part.partition(":")
        kind, has_default = rest.partition(" = ")[0].strip(), " = " in rest
        if position < len(values):
            value = values[position]
        elif name in left:
            value = left.pop(name)
        elif has_default:
            continue
        else:
            return False
        if not _is(value, kind) and not (value is None and rest.endswith("= None")):
            return False
    return len(values) <= len(wanted) and not left


def _is(value: Any, kind: str) -> bool:
    """Whether pybind11 would convert ``value`` to the C++ type that it writes as ``kind``."""
    short = kind.split(".")[-1].split("::")[-1]
    if kind in NUMBERS:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in BUFFERS:
        return isinstance(value, (bytes, bytearray, memoryview))
    plain = {"str": str, "bool": bool, "tuple": tuple, "list": list, "float": (int, float)}
    if kind in plain:
        return isinstance(value, plain[kind])
    if short == "Dims":
        return isinstance(value, (tuple, list)) or _named(value) == "Dims"
    return short in [t.__name__ for t in type(value).__mro__]


def _named(value: Any) -> str:
    return type(value).__name__


def _split(parameters: str) -> list[str]:
    """Split at the commas that stand in no bracket."""
    parts, depth, part = [], 0, ""
    for letter in parameters:
        depth += (letter in "[(<") - (letter in "])>")
        if letter == "," and not depth:
            parts.append(part.strip())
            part = ""
        else:
            part += letter
    return [*parts, part.strip()] if part.strip() else parts


if __name__ == "__main__":  # python signatures.py MODULE FILE, in a process of its own
    import importlib

    text = json.dumps(dump(importlib.import_module(sys.argv[1])))
    Path(sys.argv[2]).write_text(text)
