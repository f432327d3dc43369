"""Bundles: a manifest of any bytes, an edited one with its digest, an archive of any bytes."""

from __future__ import annotations

import io
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from export.bundle import FORMAT, Bundle, digest
from medisseg.convention import InputConvention
from medisseg.errors import UserError
from tests.fuzz.edits import Choices, dumps, edited

HERE = Path(tempfile.mkdtemp(prefix="medisseg-fuzz-"))
CONVENTION = InputConvention(size=(64, 64)).to_dict()
MANIFEST: dict[str, Any] = {
    "format": FORMAT,
    "files": {"graph.onnx": "0" * 64},
    "backend": "onnx",
    "backend_version": "1.23",
    "precision": "fp32",
    "fp16_share": 0.0,
    "compute_capabilities": ["8.6"],
    "size": [64, 64],
    "batch": [1, 1, 4],
    "threshold": 0.5,
    "classes": 2,
    "convention": CONVENTION,
    "verification": {"dice_agreement": 1.0},
    "tolerance": 0.01,
    "checkpoint": {"name": "edge", "sha256": "0"},
    "command": "medisseg build edge",
    "labels": [{"name": "polyp", "color": [255, 0, 0]}],
    "raw_frames": {"size": [480, 640], "color": "RGB"},
}


def seeds() -> list[bytes]:
    whole = {**MANIFEST, "digest": digest(MANIFEST)}
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        writer.writestr("manifest.json", dumps(whole))
    return [b"\0" + dumps(whole), b"\1", b"\1\1\3\5\7\11\13", b"\2" + archive.getvalue()]


def one(data: bytes) -> None:
    HERE.mkdir(exist_ok=True)
    kind, rest = data[:1], data[1:]
    folder, file = HERE / "bundle", HERE / "bundle.mdsg"
    if kind == b"\2":
        file.write_bytes(rest)
        place = file
    else:
        folder.mkdir(exist_ok=True)
        place = folder
        if kind == b"\1":
            manifest = edited(MANIFEST, Choices(rest))
            if isinstance(manifest, dict):
                try:
                    manifest = {**manifest, "digest": digest(manifest)}
                except (ValueError, TypeError, RecursionError):
                    return  # no JSON, so no file has it
            rest = dumps(manifest)
        (folder / "manifest.json").write_bytes(rest)
    try:
        bundle = Bundle.open(place)
        assert bundle.model_info.classes >= 1
        bundle.check()
    except UserError as error:
        assert "\n" not in str(error)[:50]


def done() -> None:
    shutil.rmtree(HERE, ignore_errors=True)
