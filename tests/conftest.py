"""Data for every test: the real images beside the checkout where present, else generated ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # for helpers: made_files.py, screens.py
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip ``gpu`` tests where PyTorch sees no GPU."""
    if not any("gpu" in item.keywords for item in items):
        return
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and references; tests that need it are skipped without it."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small generated data folder with a video: 24 images, 48 frames."""
    from medisseg.phantom import write_phantom

    out = tmp_path_factory.mktemp("phantom")
    write_phantom(out, frames=48, images=24, seed=7)
    return out


@pytest.fixture(scope="session")
def polyps(request: pytest.FixtureRequest) -> Path:
    """A labelled data folder: real polyps where they are present, else the phantom."""
    real = SHARED / "data" / "kvasir-seg"
    return real if real.is_dir() else request.getfixturevalue("phantom")
