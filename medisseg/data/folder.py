"""A folder of images and masks, as people have them, as a sequence of samples.

What is found where says :mod:`medisseg.data.layout`; what masks' values mean, which values 16-bit
images span and whether masks are turned as their images is decided once for the whole folder.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medisseg.convention import InputConvention
from medisseg.data import masks as conventions
from medisseg.data import splits
from medisseg.data.annotations import Annotations, find_annotations
from medisseg.data.layout import (
    IMAGE_FOLDER,
    MASK_ENDING,
    UNNAMED,
    natural,
    normal,
    pair,
    walk,
)
from medisseg.data.lists import misread
from medisseg.data.masks import MaskConvention
from medisseg.data.options import UNMASKED
from medisseg.data.reading import (
    IMAGE_SUFFIXES,
    BadFile,
    Range,
    Value,
    frames_of,
    is_image,
    orient,
    read_header,
    read_image,
    value_range,
)  # fmt: skip
from medisseg.data.shapes import Drawing, draw
from medisseg.data.turns import seen_turn, votes_for_turn
from medisseg.data.volumes import Slice, find_slices, read_slice
from medisseg.errors import UserError

SHOWN = 5
VOID = 255  # in masks of a whole split: these pixels count for nothing
# A mask may be larger or smaller than its image by this: some tools pad to even sides.
MOST_OFF = 2


@dataclass(frozen=True)
class Sample:
    """One labelled image: uint8 RGB [H, W, 3], class indices uint8 [H, W], and its name.

    ``void`` says which pixels count for nothing, bool [H, W]; None: all count.
    """

    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]
    name: str
    void: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Files:
    """Where a name's image and masks are, which slice of a volume it is, or what is drawn on it.

    ``frame`` is the image's, and its mask's, place in a file that holds several.
    """

    image: Path
    masks: tuple[Path, ...] = ()
    slice: Slice | None = None
    drawing: Drawing | None = None
    frame: int | None = None

    @property
    def labelled(self) -> bool:
        """Whether there is a mask."""
        return bool(self.masks) or self.slice is not None or self.drawing is not None


@dataclass(frozen=True)
class Contents:
    """What a data folder holds.

    Attributes:
        files: Every image by name, in natural order.
        conflicts: Names with masks in two places, and these masks.
        left_out: Files that are not used, and why.
        notes: What was understood, in words.
        labels: Of annotated shapes, in the order of their classes.
    """

    files: dict[str, Files]
    conflicts: dict[str, tuple[Path, ...]]
    left_out: dict[Path, str]
    notes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


class SegmentationFolder(Sequence[Sample]):
    """The samples of one split of a data folder, read when they are asked for.

    Args:
        root: Data folder.
        split: Name of a split (``val`` finds ``val.txt``, a table, or a folder ``validation``),
            path of a list, "all", or names themselves; none for a folder that :meth:`part` is to
            be taken of. In a folder that comes without any split, train, val and test are a
            seeded one.
        classes: 1 (mask values 0 and 1) or the number of classes, background included.
        labels: "auto", "classes" to keep indices also for one class, or "inverted" where masks
            mark the background.
        seed: Of the seeded split.
        groups: Table of sequences or patients that a seeded split keeps together.
        unmasked: Images without a mask: "refuse", "negative" (there is nothing on them) or "skip".

    Raises:
        UserError: No images, masks missing, an unknown split or an empty one.

    Example:
        >>> folder = SegmentationFolder("kvasir-seg", "val")
        >>> folder[0].mask.max(), len(folder)
        (1, 120)
    """

    def __init__(
        self,
        root: str | Path,
        split: str | Sequence[str] = "all",
        *,
        classes: int = 1,
        labels: str = "auto",
        seed: int = 0,
        groups: str | None = None,
        unmasked: str = "refuse",
    ) -> None:
        if unmasked not in UNMASKED:
            raise UserError(f"unmasked is {unmasked!r}; expected one of {', '.join(UNMASKED)}")
        if labels == "inverted" and classes > 1:
            raise UserError(f"labels=inverted goes with classes=1, got classes={classes}")
        self.root = Path(root).expanduser()
        self.classes = classes
        self.labels = labels
        self.unmasked = unmasked
        self.contents = find_contents(self.root)
        self.files = dict(self.contents.files)
        self._listed_masks()
        if isinstance(split, str):
            names = splits.names(self.root, split, self.images(), seed=seed, groups=groups)
        else:
            names = list(split)
        self.names = tuple(name for name in names if self.usable(name))
        if split:
            self._check(split if isinstance(split, str) else "names")

    def usable(self, name: str) -> bool:
        """Whether an image is not one that is to be skipped for want of a mask."""
        files = self.files.get(name)
        conflict = name in self.contents.conflicts
        return self.unmasked != "skip" or files is None or files.labelled or conflict

    def part(self, names: Sequence[str]) -> SegmentationFolder:
        """Return some of the folder's samples; what was decided for the folder holds for them."""
        chosen = copy.copy(self)
        chosen.names = tuple(names)
        chosen._check("names")
        # Shared, and decided now if it was not yet: both parts would look at every mask.
        chosen.__dict__["convention"], chosen.__dict__["range"] = self.convention, self.range
        return chosen

    def _listed_masks(self) -> None:
        """Take the masks that lists name beside their images."""
        for part in splits.find_parts(self.root, self.images()).values():
            for name, mask in part.masks.items():
                if name in self.files:
                    self.files[name] = dataclasses.replace(self.files[name], masks=(mask,))

    def _check(self, split: str) -> None:
        if not self.names:
            raise UserError(f"split {split!r} of {self.root} is empty; expected at least one image")
        unknown = [name for name in self.names if name not in self.files]
        if unknown:
            near = difflib.get_close_matches(unknown[0], self.files, n=1)
            raise UserError(
                f"{listed(unknown)} of split {split!r}: no such image in {self.root}"
                + (f"; the nearest is {near[0]}" if near else "")
            )
        twice = [n for n in self.names if n in self.contents.conflicts and not self.files[n].masks]
        if twice:
            first, second = self.contents.conflicts[twice[0]][:2]
            raise UserError(
                f"{twice[0]} has two masks, {first} and {second} ({len(twice)} such images); move "
                "one of them out of the folder, or name the right ones in a list: image,mask"
            )
        bare = [name for name in self.names if not self.files[name].labelled]
        if bare and self.unmasked == "refuse":
            raise UserError(
                f"{self.root}: no mask for {listed(bare)} ({len(bare)} of {len(self.names)}); "
                "expected the image's name, optionally with _mask, _segmentation or _anno, or an "
                "annotation; unmasked=negative says that there is nothing on them, unmasked=skip "
                "leaves them out" + self._strangers(bare[0])
            )

    def _strangers(self, name: str) -> str:
        """Return which files may be meant as the masks that are missing, for a message."""
        stem = normal(name.rsplit("/", 1)[-1])
        others = [p for p in walk(self.root) if normal(p.name).startswith(f"{stem}.")]
        others = [path for path in others if not is_image(path)]
        if others:
            return f"; {others[0]} is of a kind that is not read"
        loose = [path for path, why in self.contents.left_out.items() if why == UNNAMED]
        return f"; of {loose[0]} the name is no image's ({len(loose)} such masks)" if loose else ""

    def notes(self) -> list[str]:
        """Return what was understood of the folder, in words.

        Raises:
            BadFile: The masks' values or the images' ranges cannot be understood.
        """
        found = [*self.contents.notes, *self.convention.notes]
        found += misread(self.root, self.images())
        if self.range is not None:
            low, high = self.range.low, self.range.high
            found.append(f"more than 8 bits: {low:g} to {high:g} become 0 to 255")
        return found

    def images(self) -> dict[str, Path]:
        """Return every image of the folder, of whatever split, by name."""
        return {name: files.image for name, files in self.files.items()}

    @functools.cached_property
    def convention(self) -> MaskConvention:
        """What the values of the folder's masks mean."""
        return conventions.decide([mask for files in self.files.values() for mask in files.masks])

    @functools.cached_property
    def range(self) -> Range | None:
        """The values that images of more than 8 bits span, all of the folder together."""
        return value_range([files.image for files in self.files.values() if not files.slice])

    @functools.cached_property
    def turned(self) -> bool:
        """Whether masks without an orientation of their own are turned as their images.

        Asked where the size does not tell: by the edges of the images under those of the masks.
        """
        pairs = [(f.image, f.masks[0]) for f in self.files.values() if len(f.masks) == 1]
        return votes_for_turn(pairs, self.convention, self.range)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        name = self.names[index]
        files = self.files[name]
        if files.slice is not None:
            return Sample(*read_slice(files.slice, self.classes), name)
        image = read_image(files.image, self.range, files.frame)
        mask, void = self._mask(files, image.shape[:2])
        if self.labels == "inverted":
            mask = 1 - mask
        return Sample(image, mask, name, void)

    def _mask(
        self, files: Files, size: tuple[int, ...]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_] | None]:
        if files.drawing is not None:
            return draw(files.drawing, files.image, self.contents.labels, self.classes)
        mask = np.zeros(size, np.uint8)
        void = None
        for path in files.masks:
            one, ignored = self._one_mask(path, files, size)
            mask = np.maximum(mask, one)
            if ignored is not None:
                void = ignored if void is None else void & ignored
        return mask, void

    def _one_mask(
        self, path: Path, files: Files, size: tuple[int, ...]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_] | None]:
        """Return a mask file and its void, as its image is seen."""
        image, stack = files.image, frames_of(path)
        frame = files.frame if stack > 1 else None
        if stack > 1 and stack != frames_of(image):
            raise BadFile(
                f"{path} holds {stack} masks, but {image} {frames_of(image)} images; "
                "expected as many"
            )
        stored = conventions.read_stored(path, frame)
        keep = self.labels == "classes"
        mask, void = conventions.apply(stored, self.convention, self.classes, keep, path)
        turn = seen_turn(read_header(image), stored.orientation, mask.shape, size)
        if turn is None:
            turn = read_header(image).orientation if self.turned else 1
        mask = fit(np.ascontiguousarray(orient(mask, turn)), size, path)
        return mask, None if void is None else fit(orient(void, turn), size, path)


def fit(mask: npt.NDArray[Value], size: tuple[int, ...], path: Path) -> npt.NDArray[Value]:
    """Return a mask [h, w] at its image's ``size`` (height, width).

    Up to two rows or columns are cut off, or repeated.

    Raises:
        BadFile: The sizes differ by more.
    """
    if mask.shape == size:
        return mask
    if max(abs(mine - other) for mine, other in zip(mask.shape, size, strict=True)) > MOST_OFF:
        raise BadFile(
            f"{path} is {mask.shape[1]}x{mask.shape[0]} but its image "
            f"{size[1]}x{size[0]}; both must have the same size"
        )
    rows, columns = (
        np.minimum(np.arange(side), mine - 1) for side, mine in zip(size, mask.shape, strict=True)
    )
    return np.ascontiguousarray(mask[rows[:, None], columns])


def load(
    folder: Sequence[Sample], convention: InputConvention, threads: int = 2
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Decode and resize a whole folder once.

    Returns:
        Images uint8 RGB [N, 3, h, w] at the convention's size (not yet normalised) and class
        indices uint8 [N, h, w], :data:`VOID` where a pixel counts for nothing.

    Raises:
        UserError: Some files cannot be used; names the first ones and how many.
    """
    plain = InputConvention(
        mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), size=convention.size, resize=convention.resize
    )
    height, width = convention.size
    images = np.empty((len(folder), 3, height, width), np.uint8)
    masks = np.empty((len(folder), height, width), np.uint8)

    def read(index: int) -> str | None:
        try:
            sample = folder[index]
        except BadFile as error:
            return str(error)
        images[index] = np.rint(np.clip(plain.preprocess(sample.image), 0, 1) * 255)
        masks[index] = resize_mask(sample.mask, convention)
        if sample.void is not None:
            masks[index][resize_mask(sample.void.astype(np.uint8), convention) > 0] = VOID
        return None

    with ThreadPoolExecutor(threads) as pool:
        bad = [message for message in pool.map(read, range(len(folder))) if message]
    if bad:
        more = f" (and {len(bad) - 1} more of {len(folder)})" if len(bad) > 1 else ""
        raise UserError(bad[0] + more)
    return images, masks


def resize_mask(mask: npt.NDArray[np.uint8], convention: InputConvention) -> npt.NDArray[np.uint8]:
    """Bring class indices [H, W] to the network's size as its images are: nearest, [h, w]."""
    top, left, height, width = convention.content(mask.shape)
    rows = ((np.arange(height) + 0.5) * mask.shape[0] / height).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * mask.shape[1] / width).astype(np.int64)
    resized = np.zeros(convention.size, np.uint8)
    resized[top : top + height, left : left + width] = mask[rows[:, None], columns]
    return resized


def find_files(root: Path) -> dict[str, Files]:
    """Return every image below ``root`` by name, with its mask where there is one.

    Raises:
        UserError: As :func:`find_contents`.
    """
    return find_contents(root).files


def find_contents(root: Path) -> Contents:
    """Return what a data folder holds: images with masks or annotations, else slices of volumes.

    A name is the file's stem; where two folders (``train`` and ``test``, say) have files of one
    stem, it is the folders that tell them apart and the stem: ``train/17``.

    Raises:
        UserError: No such folder, no images in it, or two images of one name in one folder.
    """
    if not root.is_dir():
        raise UserError(f"no data folder {root}; expected a folder with images/ and masks/")
    paired = pair(root)
    if not paired.images and (slices := find_slices(root)):
        return Contents({n: Files(part.path, (), part) for n, part in slices.items()}, {}, {})
    if not paired.images:
        kinds = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
        loose = [path for path in walk(root) if path.suffix.lower() in (".json", ".xml", ".csv")]
        hint = f"; annotations such as {loose[0]} need their images beside them" if loose else ""
        raise UserError(
            f"no images in {root}; expected images/ and masks/ with files of {kinds}{hint}"
        )
    names = _names(paired.images, root)
    images = {name: path for path, name in names.items()}
    drawn = Annotations()
    if not paired.masks and not paired.conflicts:
        drawn = find_annotations(root, images)
    files: dict[str, Files] = {}
    for name, path in images.items():
        one = Files(path, paired.masks.get(path, ()), None, drawn.drawings.get(name))
        files |= _frames(name, one, paired.left_out)
    conflicts = {names[path]: masks for path, masks in paired.conflicts.items()}
    notes = (*paired.notes, *drawn.notes())
    return Contents(files, conflicts, dict(paired.left_out), notes, drawn.labels)


def _frames(name: str, files: Files, others: Iterable[Path]) -> dict[str, Files]:
    """Return a file's images by name: itself, or ``NAME_slice000`` and so on of a stack.

    A stack's masks are a stack, or the files of these names.
    """
    count = frames_of(files.image)
    if count == 1:
        return {name: files}
    every = (*others, *files.masks)
    by_stem = {MASK_ENDING.sub("", normal(path.stem)): path for path in every}
    found = {}
    for k in range(count):
        one = f"{name}_slice{k:03}"
        own = by_stem.get(normal(one))
        masks = files.masks if own is None else (own,)
        found[one] = dataclasses.replace(files, masks=masks, frame=k)
    return found


def _names(images: Sequence[Path], root: Path) -> dict[Path, str]:
    """Return a name for every image: its stem, behind its folders where another has that stem."""
    stems = Counter(normal(path.stem) for path in images)
    names: dict[Path, str] = {}
    there: dict[str, Path] = {}
    for path in sorted(images, key=lambda file: natural(file.relative_to(root).as_posix())):
        name = path.stem if stems[normal(path.stem)] == 1 else _qualified(path, root)
        if name in there:
            raise UserError(f"two images named {name}: {there[name]} and {path}; names must differ")
        names[path] = name
        there[name] = path
    return names


def _qualified(path: Path, root: Path) -> str:
    """Return the stem behind the folders that are not just called images."""
    folders = path.parent.relative_to(root).parts
    kept = [part for part in folders if not IMAGE_FOLDER.fullmatch(part)]
    return "/".join([*kept, path.stem])


def listed(names: Sequence[str]) -> str:
    """Return the first few names for a message, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more
