"""YAML of the runner (``--config``) and of training: any text, and edited values."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from deploy import options
from medisseg.config import load_config
from medisseg.errors import UserError
from tests.fuzz.edits import Choices, edited

HERE = Path(tempfile.mkdtemp(prefix="medisseg-fuzz-"))
RUN: dict[str, Any] = {
    "sources": ["rtsp://camera/stream", "exam.mp4"],
    "model": "edge",
    "out": "runs/x",
    "threshold": 0.5,
    "hold-off": 3,
    "serve": "127.0.0.1:8080",
    "input_size": "480x640",
    "quality": False,
    "part_s": 60,
}
TRAIN: dict[str, Any] = {
    "base": "edge",
    "data": ["a", {"path": "b", "weight": 2.0}],
    "classes": 1,
    "stage2": {"epochs": 5, "lr": 1e-4},
}


def seeds() -> list[bytes]:
    texts = [yaml.safe_dump(values).encode() for values in (RUN, TRAIN)]
    aliases = b"a: &a [1, 2]\nb: *a\n<<: {c: !!binary aGk=}\nd: 2001-01-01\n"
    numbers = b"threshold: " + b"1" * 5000 + b"\npart_s: 2026-13-45\n"
    return [*(b"\0" + text for text in (*texts, aliases, numbers)), b"\1\1\3", b"\2\1\3\5"]


def one(data: bytes) -> None:
    HERE.mkdir(exist_ok=True)
    kind, rest = data[:1], data[1:]
    if kind in (b"\1", b"\2"):
        values = edited(RUN if kind == b"\1" else TRAIN, Choices(rest))
        try:
            rest = yaml.safe_dump(values).encode("utf-8", "surrogatepass")
        except (yaml.YAMLError, ValueError, RecursionError):
            return
    path = HERE / "config.yaml"
    path.write_bytes(rest)
    for read in (lambda: options.parse(["--config", str(path)]), lambda: load_config(path)):
        try:
            read()
        except UserError as error:
            assert len(str(error)) < 20_000


def done() -> None:
    shutil.rmtree(HERE, ignore_errors=True)
