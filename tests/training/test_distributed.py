"""Two CPU processes train as one process with the joint batch does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPT = Path(__file__).with_name("two_processes.py")
TINY = [
    "input.size=[64,64]",
    "options={width: 8, heads: 2, decouple_width: 8, aux_widths: [8, 8, 8, 8], head_width: 8}",
    "encoder_weights=null",
    "batch=4",
    "epochs=1",
    "lr=1e-6",
    "hardware.threads=1",
    "split={train: null, validation: null, held_out: [], fraction: 0.3}",
]


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    root = tmp_path_factory.mktemp("blobs")
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for index in range(12):
        mask = np.zeros((64, 64), bool)
        y, x = rng.integers(8, 32, 2)
        mask[y : y + 24, x : x + 20] = True
        image = rng.integers(60, 90, (64, 64, 3)) + 100 * mask[:, :, None]
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{index}.png")
        Image.fromarray((255 * mask).astype(np.uint8)).save(root / "masks" / f"{index}.png")
    return root


def train(world: int, blobs: Path, out: Path) -> Path:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [sys.executable, str(SCRIPT), *TINY, f"data={blobs}", f"out={out}"]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    processes = []
    for rank in range(world):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        more = {**common, **{key: str(value) for key, value in ranks.items()}} if world > 1 else {}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **more}
        processes.append(
            subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True)
        )
    errors = [process.communicate(timeout=300)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert codes == [0] * world, "\n".join(errors)[-3000:]
    return out


def test_two_processes_equal_one_with_the_joint_batch(blobs: Path, tmp_path: Path) -> None:
    """The first gradients of both stages (the dispersive term and area weights see the joint
    batch), and validation, whose images are shared out without repeating one."""
    from medisseg.checkpoint import read_header

    one, two = train(1, blobs, tmp_path / "one"), train(2, blobs, tmp_path / "two")
    for stage in (1, 2):
        alone, joint = (torch.load(out / f"gradients{stage}.pt") for out in (one, two))
        assert alone.keys() == joint.keys()
        largest = max(float(gradient.norm()) for gradient in alone.values())
        for name, gradient in alone.items():
            distance = float((joint[name] - gradient).norm())
            assert distance < 1e-4 * float(gradient.norm()) + 1e-6 * largest, (stage, name)
        files = (out / f"stage{stage}" / "last.safetensors" for out in (one, two))
        losses = [read_header(file).metrics["val_loss"] for file in files]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
