"""The frames that an engine is verified and calibrated on."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medisseg.errors import UserError


@dataclass(frozen=True)
class Frame:
    """One image to verify on: uint8 RGB [H, W, 3], its mask uint8 [H, W] (or None) and its name."""

    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8] | None
    name: str


def frames_from(
    data: str | Path | None, count: int, split: str | None = None, classes: int = 1
) -> list[Frame]:
    """Read ``count`` images, spread over a data folder; phantom images without one.

    Args:
        data: Folder with ``images/`` (and ``masks/``), or a folder of images; None for phantoms.
        count: How many; 0 for all.
        split: Name of a list in the folder; None takes "val" where it is listed, else all.
        classes: 1, or the number of classes in the masks.

    Raises:
        UserError: No images there, or no such split.
    """
    from medisseg.data import splits
    from medisseg.data.folder import find_files
    from medisseg.data.reading import read_image, read_mask

    if data is None:
        return _phantoms(count or 4, classes)
    files = find_files(Path(data))
    if split is None:
        split = "val" if splits.find_list(Path(data), "val") else "all"
    names = [name for name in splits.names(Path(data), split, list(files)) if name in files]
    if not names:
        raise UserError(f"split {split!r} of {data} names no image that is there")
    if count and count < len(names):
        names = [names[i * len(names) // count] for i in range(count)]
    frames = []
    for name in names:
        mask = files[name].mask
        truth = None if mask is None else read_mask(mask, classes)
        frames.append(Frame(read_image(files[name].image), truth, name))
    return frames


def _phantoms(count: int, classes: int) -> list[Frame]:
    from medisseg.phantom import write_phantom

    with tempfile.TemporaryDirectory() as folder:
        write_phantom(Path(folder), frames=0, images=count, seed=0)
        return frames_from(folder, count, "all", classes if classes == 1 else 2)


def source_name(data: str | Path | None) -> str:
    """Return what the manifest says about where the images come from."""
    return "phantom" if data is None else Path(data).name
