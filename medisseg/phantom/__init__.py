"""A generated colonoscopy: images and a video with exact masks, for people without data."""

from __future__ import annotations

from pathlib import Path


def write_phantom(
    out: str | Path,
    frames: int = 0,
    images: int = 0,
    seed: int = 0,
    size: tuple[int, int] = (256, 256),
    fps: int = 25,
) -> None:
    """Write a phantom to the folder ``out``; see :func:`medisseg.phantom.writer.write`.

    Example:
        >>> write_phantom("phantom", frames=200, images=240, seed=0)
    """
    from medisseg.phantom.writer import write

    write(Path(out), frames, images, seed, size, fps)
