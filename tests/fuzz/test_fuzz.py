"""What the fuzzer starts from and what it once found passes through its harnesses."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tests.fuzz.run import NAMES

HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize("name", NAMES)
def test_seeds_and_findings(name: str) -> None:
    harness = importlib.import_module(f"tests.fuzz.{name}")
    found = sorted((HERE / "findings" / name).glob("*"))
    inputs = [*harness.seeds(), *(path.read_bytes() for path in found), b"", b"\1"]
    try:
        for data in inputs:
            harness.one(data)
    finally:
        harness.done()
