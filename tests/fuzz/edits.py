"""Choices made by a fuzzer's bytes, and JSON values that they spoil."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

DEEP: Any = "end"
for _ in range(150):
    DEEP = [DEEP]
NASTY: list[Any] = [
    *(None, True, False, -1, 0, 1, 2, 7, 255, 65536, 2**31, 2**63, 10**30, 10**400),
    *(0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf")),
    *("", "\0", "..", "../x", "/etc/passwd", "\ud800", "\x1b[2J", "[/b]", "\n", "9" * 5000),
    *([], {}, [None], [[]] * 300, {"": None}, {"a": {"a": {}}}, DEEP),
]


class Choices:
    """Choices drawn from bytes, and from a generator of fixed seed once they run out.

    Has the methods of ``numpy.random.Generator`` that ``tests/frames/fuzz.py`` uses.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._at, self._more = data, 0, random.Random(len(data))

    def take(self, count: int) -> bytes:
        """Return up to ``count`` bytes."""
        self._at += count
        return self._data[self._at - count : self._at]

    def below(self, most: int) -> int:
        """Return a whole number from 0 to ``most`` - 1."""
        if self._at >= len(self._data):
            return self._more.randrange(most)
        return int.from_bytes(self.take(1 if most <= 256 else 4), "little") % most

    def pick(self, values: Any) -> Any:
        """Return one of some values."""
        return values[self.below(len(values))]

    def integers(self, low: int, high: int | None = None, size: Any = None, kind: Any = int) -> Any:
        import numpy as np

        low, high = (0, low) if high is None else (int(low), int(high))
        if size is None:
            return low + self.below(high - low)
        few = np.array([low + self.below(high - low) for _ in range(min(size, 16))], kind)
        return np.resize(few, size)

    def random(self) -> float:
        return self.below(256) / 256

    def normal(self) -> float:
        return 4 * self.random() - 2


def edited(value: Any, choices: Choices) -> Any:
    """Return a copy of a JSON value with one to four parts replaced, added or removed."""
    root = [copy.deepcopy(value)]
    for _ in range(1 + choices.below(4)):
        parent: Any = root
        key: Any = 0
        while isinstance(parent[key], dict | list) and parent[key] and choices.below(4):
            parent = parent[key]
            key = choices.pick(list(parent) if isinstance(parent, dict) else range(len(parent)))
        how = choices.below(8)
        if how == 0 and parent is not root:
            del parent[key]
        elif how == 1 and isinstance(parent, dict):
            parent[choices.pick(["", "x", *parent])] = choices.pick(NASTY)
        elif how == 2:
            parent[key] = choices.take(8).decode("latin-1")
        elif how == 3:
            parent[key] = choices.below(2**32) - 2**16
        else:
            parent[key] = copy.deepcopy(choices.pick(NASTY))
        if not root:
            break
    return root[0] if root else None


def dumps(value: Any) -> bytes:
    """Return a value as JSON text; one that Python cannot write is null."""
    try:
        return json.dumps(value).encode("utf-8", "surrogatepass")
    except (ValueError, TypeError, RecursionError):
        return b"null"
