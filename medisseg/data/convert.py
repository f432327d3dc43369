"""Write a data folder anew, with masks as PNG files, from whatever its annotations are."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from medisseg.data.folder import VOID, SegmentationFolder
from medisseg.data.lists import find_parts
from medisseg.data.reading import read_header
from medisseg.files import replacing

PLAIN = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def write_masks(
    folder: SegmentationFolder, out: Path, advance: Callable[[int], object] = lambda images: None
) -> int:
    """Write ``images/``, ``masks/NAME.png`` and the folder's splits; return the number of images.

    Masks hold 0 and 255, or class indices with 255 for void; the labels' order is in
    ``classes.txt``. Images are copied, or written as PNG as they are seen where they are turned by
    EXIF, of more than 8 bits or no picture files.

    Raises:
        UserError: A file cannot be used; ``out`` is whole or absent.
    """
    with replacing(out) as temporary:
        for index, name in enumerate(folder.names):
            sample = folder[index]
            files = folder.files[name]
            values = sample.mask * np.uint8(255) if folder.classes == 1 else sample.mask.copy()
            if sample.void is not None and folder.classes > 1:
                values[sample.void] = VOID
            mask = temporary / "masks" / f"{name}.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(mask)
            image = temporary / "images" / f"{name}{files.image.suffix.lower()}"
            image.parent.mkdir(parents=True, exist_ok=True)
            if (
                files.slice is None
                and files.image.suffix.lower() in PLAIN
                and _as_seen(files.image)
            ):
                shutil.copyfile(files.image, image)
            else:
                Image.fromarray(sample.image).save(image.with_suffix(".png"))
            advance(1)
        written = set(folder.names)
        for part, content in find_parts(folder.root, folder.images()).items():
            names = [name for name in content.names if name in written]
            (temporary / f"{part}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
        if folder.classes > 1 and folder.contents.labels:
            labels = "\n".join(folder.contents.labels) + "\n"
            (temporary / "classes.txt").write_text(labels, encoding="utf-8")
    return len(folder)


def _as_seen(path: Path) -> bool:
    head = read_header(path)
    return head.orientation == 1 and not head.deep
