"""The frames that an engine is verified and calibrated on."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class ReferenceFrame:
    """One image to verify on: uint8 RGB [H, W, 3], its mask uint8 [H, W] (or None), its name."""

    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8] | None
    name: str


def frames_from(
    data: str | Path | None, count: int, split: str | None = None, classes: int = 1
) -> list[ReferenceFrame]:
    """Read ``count`` images, spread over a data folder; phantom images without one.

    Args:
        data: Folder with ``images/`` (and ``masks/``), or a folder of images; None for phantoms.
        count: How many; 0 for all.
        split: Name of a list in the folder; None takes "val" where it is listed, else all.
        classes: 1, or the number of classes in the masks.

    Returns:
        Images uint8 RGB [H, W, 3] at their own sizes, with masks where the folder has them.

    Raises:
        UserError: No images there, or no such split.
    """
    from medisseg.data import splits
    from medisseg.data.folder import SegmentationFolder, find_contents

    if data is None:
        return _phantoms(count or 4, classes)
    root = Path(data)
    if split is None:
        images = {name: files.image for name, files in find_contents(root).files.items()}
        split = "val" if splits.find(root, "val", images) else "all"
    folder = SegmentationFolder(root, split, classes=classes, unmasked="negative")
    chosen: Sequence[int] = range(len(folder))
    if count and count < len(folder):
        chosen = [i * len(folder) // count for i in range(count)]
    frames = []
    for sample in (folder[i] for i in chosen):
        labelled = folder.files[sample.name].labelled
        frames.append(ReferenceFrame(sample.image, sample.mask if labelled else None, sample.name))
    return frames


def _phantoms(count: int, classes: int) -> list[ReferenceFrame]:
    from medisseg.phantom import write_phantom

    with tempfile.TemporaryDirectory() as folder:
        write_phantom(Path(folder), frames=0, images=count, seed=0)
        return frames_from(folder, count, "all", classes if classes == 1 else 2)


def source_name(data: str | Path | None) -> str:
    """Return the name of a data folder for the manifest; "phantom" for None."""
    return "phantom" if data is None else Path(data).name
