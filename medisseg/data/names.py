"""What lists and tables call the images of a folder, and what one split of them is."""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medisseg.data.layout import normal
from medisseg.errors import UserError
from medisseg.untrusted import read_bytes

EXTENSION = re.compile(
    r"\.(jpe?g|png|bmp|tiff?|webp|gif|jp2|j2k|dcm|npz|h5|npy\.h5|nii(\.gz)?)$", re.I
)
MOST_LIST = 50_000_000  # bytes


@dataclass(frozen=True)
class Part:
    """One split: its names, where it comes from, and the masks that a list gives them."""

    names: tuple[str, ...]
    origin: str
    masks: Mapping[str, Path] = field(default_factory=dict)


class Names:
    """The images of a folder, found by what a list calls them.

    Args:
        root: Data folder.
        images: Every image's name, with its path where there is one.
    """

    def __init__(self, root: Path, images: Mapping[str, Path] | Sequence[str]) -> None:
        self.root = root
        self.paths: Mapping[str, Path] = images if isinstance(images, Mapping) else {}
        self.known: dict[str, str] = {}
        for name in images:
            self.known.setdefault(normal(name), name)
        shared = Counter(self.paths.values())
        for name, path in self.paths.items():
            if root in path.parents and shared[path] == 1:  # not a slice of a volume
                relative = EXTENSION.sub("", path.relative_to(root).as_posix())
                self.known.setdefault(normal(relative), name)
        self.cases = {normal(n.rsplit("_slice", 1)[0]) for n in images if "_slice" in n}

    def find(self, text: str) -> str | None:
        """Return the name of an entry such as ``images\\a.jpg``; None: no such image."""
        entry = text.strip().strip("\"'").replace("\\", "/").removeprefix("./")
        bare = EXTENSION.sub("", entry)
        parts = bare.split("/")
        for start in range(len(parts)):
            if (key := normal("/".join(parts[start:]))) in self.known:
                return self.known[key]
        return None

    def names_something(self, text: str) -> bool:
        """Whether an entry is an image or a volume's case."""
        return self.find(text) is not None or normal(stem(text)) in self.cases


def stem(text: str) -> str:
    """Return an entry without folders and extension."""
    last = text.strip().strip("\"'").replace("\\", "/").rsplit("/", 1)[-1]
    return EXTENSION.sub("", last)


def read_text(path: Path, most: int = MOST_LIST) -> str:
    """Return a text file of UTF-8, or of UTF-16 as PowerShell writes lists.

    Raises:
        UserError: Neither, no regular file, or one of more than ``most`` bytes.
    """
    content = read_bytes(path, most)
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8; store it as UTF-8") from error


def existing(text: str, listing: Path, root: Path) -> Path | None:
    relative = text.strip().strip("\"'").replace("\\", "/")
    if not relative or EXTENSION.sub("", relative) == relative:
        return None
    places = (root / relative, listing.parent / relative)
    return next((path for path in places if path.is_file()), None)


def shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if root in path.parents else str(path)
