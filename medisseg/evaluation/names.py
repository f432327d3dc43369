"""What a checkpoint is called in tables and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

# Every run folder has these; the folder's name says more.
COMMON = ("best", "last")


def label(checkpoint: str | Path) -> str:
    """Return a short name: ``edge-kvasir``, or ``runs/edge/best.safetensors`` as ``edge``."""
    path = Path(checkpoint)
    return path.resolve().parent.name if path.stem in COMMON else path.stem


def labels(checkpoints: Sequence[str]) -> list[str]:
    """Return a short name of each checkpoint; equal ones are told apart by their folders."""
    short = [label(checkpoint) for checkpoint in checkpoints]
    if len(set(short)) == len(short):
        return short
    paths = [Path(checkpoint).resolve() for checkpoint in checkpoints]
    return [f"{path.parent.name}/{path.stem}" for path in paths]
