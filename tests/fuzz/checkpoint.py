"""Checkpoints: a file of any bytes, and an edited header before real tensors."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from medisseg.checkpoint import KEY, new_checkpoint, read_header
from medisseg.errors import UserError
from tests.fuzz.edits import Choices, dumps, edited

HERE = Path(tempfile.mkdtemp(prefix="medisseg-fuzz-"))
HEADER: dict[str, Any] = json.loads(
    json.dumps(new_checkpoint("edge", 2, 1, {"levels": 3, "shuffle": True}).to_dict())
)
HEADER["labels"] = [{"name": "polyp", "color": [255, 0, 0]}]


def file_of(header: bytes) -> bytes:
    """Return a safetensors file with one tensor and our header."""
    tensor = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    text = header.decode("utf-8", "replace")
    head = dumps({"__metadata__": {KEY: text}, "w": tensor})
    return len(head).to_bytes(8, "little") + head + bytes(4)


def seeds() -> list[bytes]:
    return [b"\0" + file_of(dumps(HEADER)), b"\1", b"\1\1\3\5\7", b"\2" + dumps(HEADER)]


def one(data: bytes) -> None:
    HERE.mkdir(exist_ok=True)
    kind, rest = data[:1], data[1:]
    if kind == b"\1":
        rest = file_of(dumps(edited(HEADER, Choices(rest))))
    elif kind == b"\2":
        rest = file_of(rest)
    path = HERE / "best.safetensors"
    path.write_bytes(rest)
    try:
        info = read_header(path)
        assert 1 <= info.classes <= 256 and info.stage in (1, 2)
    except UserError:
        pass


def done() -> None:
    shutil.rmtree(HERE, ignore_errors=True)
