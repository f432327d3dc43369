"""Fixtures of the conformance tests; their helpers lie beside them and are imported by name."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import libraries
from fake_cuda import Cuda, Torch
from fake_trt import build
from signatures import Signatures

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return the folder that gives ``import tensorrt`` of a version (made once)."""
    folder = tmp_path_factory.mktemp("bindings")
    made: dict[tuple[str, bool], Path] = {}

    def place(version: str, forward: bool = False) -> Path:
        key = version, forward
        if key not in made:
            made[key] = libraries.module_path(folder, version, forward)
        return made[key]

    return place


@pytest.fixture(scope="session")
def signatures(places: Callable[..., Path], tmp_path_factory: Any) -> Callable[[str], Signatures]:
    """Return the signatures of a version of the bindings; "rtx" is TensorRT for RTX's."""
    folder = tmp_path_factory.mktemp("signatures")
    known: dict[str, Signatures] = {}

    def of(version: str) -> Signatures:
        if version not in known:
            module = "tensorrt_rtx" if version == "rtx" else "tensorrt"
            place = folder if version == "rtx" else places(version)
            if version == "rtx":
                pytest.importorskip("tensorrt_rtx")
            out = folder / f"{version}.json"
            done = libraries.python(place, str(HERE / "signatures.py"), module, str(out))
            assert done.returncode == 0, done.stderr
            known[version] = Signatures(json.loads(out.read_text()))
        return known[version]

    return of


@pytest.fixture
def fake(
    signatures: Callable[[str], Signatures], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Cuda, Any]]:
    """Put the runtime of a version over a machine with two GPUs in place: (Cuda, module)."""

    def place(version: str) -> tuple[Cuda, Any]:
        from export.runtime import opening, tensorrt_batch, tensorrt_engine

        cuda = Cuda()
        name = "tensorrt_rtx" if version == "rtx" else "tensorrt"
        module = build(
            signatures(version), cuda, "1.7.1.116" if version == "rtx" else version, name
        )
        monkeypatch.setitem(sys.modules, name, module)
        for user in (tensorrt_engine, tensorrt_batch, opening):
            monkeypatch.setattr(user, "torch", Torch(cuda))
        return cuda, module

    return place
