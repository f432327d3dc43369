"""Images without lesion: a folder of images alone, whose every pixel is background."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medisseg.data.folder import Sample
from medisseg.data.layout import find_images
from medisseg.data.reading import Range, read_image, value_range
from medisseg.errors import UserError


class Negatives(Sequence[Sample]):
    """The images below a folder in natural order, each with an empty mask.

    Args:
        root: Folder of images; masks are not expected.
        names: Which of them, by path below ``root`` without suffix; None: all.

    Raises:
        UserError: No such folder, or no images in it.
    """

    def __init__(self, root: str | Path, names: Sequence[str] | None = None) -> None:
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise UserError(f"no folder {root}; expected images without lesion")
        paths = find_images(self.root)
        if not paths:
            raise UserError(f"no images in {root}; expected images without lesion")
        self.files = {p.relative_to(self.root).with_suffix("").as_posix(): p for p in paths}
        self.names = tuple(self.files if names is None else names)

    def __len__(self) -> int:
        return len(self.names)

    @functools.cached_property
    def range(self) -> Range | None:
        """The values that images of more than 8 bits span, all of the folder together."""
        return value_range(list(self.files.values()))

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        image = read_image(self.files[self.names[index]], self.range)
        return Sample(image, np.zeros(image.shape[:2], np.uint8), self.names[index])

    def part(self, names: Sequence[str]) -> Negatives:
        """Return some of the folder's samples."""
        chosen = copy.copy(self)
        chosen.names = tuple(names)
        chosen.__dict__["range"] = self.range
        return chosen

    def notes(self) -> list[str]:
        """Return nothing: every pixel is background."""
        return []

    def parts(self, fraction: float) -> dict[str, list[str]]:
        """Return the names of train and validation: the last frames, as neighbours in a list are
        often neighbours in time and look alike.

        Raises:
            UserError: One image alone.
        """
        if len(self.names) < 2:
            raise UserError(f"one image in {self.root}; expected at least two")
        taken = min(len(self.names) - 1, max(1, round(fraction * len(self.names))))
        return {"train": list(self.names[:-taken]), "validation": list(self.names[-taken:])}
