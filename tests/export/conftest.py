"""A small network with sharp masks, and bundles of it, built once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

from export.build_engine import build
from export.bundle import Bundle
from export.graph import export_graph
from medisseg.checkpoint import save_checkpoint
from medisseg.convention import InputConvention
from medisseg.model.create import create_model
from medisseg.model.inference import for_inference
from medisseg.model.loading import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SIZE = (64, 96)


@pytest.fixture(scope="session")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder: smooth pictures with a bright ellipse, and its mask."""
    folder = tmp_path_factory.mktemp("frames")
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for i in range(6):
        image = cv2.GaussianBlur(rng.integers(0, 160, (80, 120, 3), np.uint8), (0, 0), 3)
        mask = np.zeros((80, 120), np.uint8)
        centre = int(rng.integers(30, 90)), int(rng.integers(20, 60))
        cv2.ellipse(mask, centre, (22, 14), int(rng.integers(0, 180)), 0, 360, 255, -1)
        image[mask > 0] = image[mask > 0] // 2 + np.array([60, 90, 120], np.uint8)
        cv2.imwrite(str(folder / "images" / f"{i}.png"), image)
        cv2.imwrite(str(folder / "masks" / f"{i}.png"), mask)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stage I ``edge`` network, untrained, with logits spread around zero on both sides."""
    torch.manual_seed(0)
    model = create_model("edge", stage=1)
    return _save(model, tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors")


@pytest.fixture(scope="session", params=["edge", "edge-lite"])
def whole_checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A Stage II network of each small preset: every operator that engines meet."""
    torch.manual_seed(1)
    model = create_model(request.param)
    return _save(model, tmp_path_factory.mktemp("whole") / "whole.safetensors")


def _save(model: torch.nn.Module, path: Path) -> Path:
    import dataclasses

    model.eval()
    last = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    with torch.no_grad():
        picture = torch.randn(2, 3, *SIZE)
        logits = model(picture)
        last.weight *= 3 / logits.std()
        if last.bias is not None:
            last.bias -= logits.mean()
    info = dataclasses.replace(model.info, convention=InputConvention(size=SIZE))
    return save_checkpoint(path, model, info)


@pytest.fixture(scope="session")
def graph(checkpoint: Path) -> onnx.ModelProto:
    """The float32 graph of the small network."""
    return export_graph(for_inference(load_checkpoint(checkpoint)), SIZE)


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An ONNX Runtime bundle of the small network, as a folder."""
    out = tmp_path_factory.mktemp("bundles") / "tiny-onnx"
    return build(checkpoint, out, backend="onnx", data=frames, images=3, quiet=True)


@pytest.fixture
def run() -> Callable[..., tuple[int, str, str]]:
    """Run ``export/build_engine.py`` as users do: return (exit code, output, errors)."""
    import subprocess

    def runner(*words: object, cwd: Path | None = None) -> tuple[int, str, str]:
        command = [sys.executable, str(ROOT / "export" / "build_engine.py"), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)
        return done.returncode, done.stdout, done.stderr

    return runner
