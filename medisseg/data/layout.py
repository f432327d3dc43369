"""Which files of a folder are images, which are masks, and which mask belongs to which image.

A folder's name decides what is in it (``images``, ``Ground Truth``, ``ann_dir/train``), a file's
ending where folders do not (``a_mask.png`` beside ``a.jpg``). Masks are found by name, whatever
its case and Unicode form; several masks of one image in one folder (``a_mask_1``, ``a_mask_2``, or
a folder a case) are one mask together, in two folders a conflict that is said.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medisseg.data.reading import is_image
from medisseg.files import in_utf8

ENDING_WORDS = (
    "segmentation|segmented|seg|masks?|anno|annotations?|annot|gt|ground_?truth|labels?|"
    "label_?(?:train_?)?ids?|instance_?ids?|manual"
)
# Endings of masks where the rest is an image's name: a photograph may be called left_l, too.
WEAK_WORDS = "roi|lesions?|binary|bin|contours?|matte|l"
SURE_ENDING = re.compile(rf"[ _.-]+(?:{ENDING_WORDS})(?:[ _.-]?\(?\d+\)?)?$", re.I)
MASK_ENDING = re.compile(rf"[ _.-]+(?:{ENDING_WORDS}|{WEAK_WORDS})(?:[ _.-]?\(?\d+\)?)?$", re.I)
MASK_START = re.compile(
    r"^(?:masks?|labels?|gt|seg|segmentation|anno|annotation|manual)[ _.-]+", re.I
)
IMAGE_ENDING = re.compile(
    r"[ _.-]+(?:images?|img|input|orig|original|training|test|leftimg8bit|rgb|photo|raw|0000)$",
    re.I,
)
IMAGE_START = re.compile(r"^(?:images?|img|orig|original|photo)[ _.-]+", re.I)
NUMBERED = re.compile(r"[ _.-]+\(?\d+\)?$")
# Several people's masks of one image are no parts of one mask.
READER = re.compile(r"manual[ _.-]?\d+$|[ _.-](?:reader|rater|expert|observer|annotator)[ _.-]?\d+$"
                    r"|\d(?:st|nd|rd)ho$", re.I)  # fmt: skip
MASK_FOLDER = re.compile(
    r"(?<!un)(?<!non)mask|(?<!un)label(?!me|l?ed)|annot|ground.?truth|segmentation|^manual|_manual$"
    r"|^(gt|gts|seg|anno|anns?|lesions?|roi|targets?|contours?)$|[_-](gt|seg|anno)$|^(gt|ann|seg)[_-]"
    r"|^gt(fine|coarse)$",
    re.I,
)
IMAGE_FOLDER = re.compile(
    r"(jpeg)?images?(tr|ts|val)?|imgs?|im|img_dir|image_dir|(train|val|test)[_-]?(images?|imgs?)|"
    r"images?[_-](train|val|test)|original(_?images?)?|data|leftimg8bit|photos?|frames?",
    re.I,
)
LITTER_FOLDER = re.compile(
    r"^(\..*|__macosx|@eadir|\$recycle\.bin|system volume information|lost\+found|__pycache__)$",
    re.I,
)
LITTER = re.compile(
    r"^\.|^~|^(thumbs\.db|desktop\.ini|icon\r)|_superpixels\.\w+$|(~|\.(part|tmp|bak|crdownload))$",
    re.I,
)
# Folders that sets ship for other purposes beside their masks: (taken, left out).
KNOWN_PAIRS = (
    ("segmentationclass", "segmentationobject"),
    ("1st_manual", "mask"),
    ("1st_manual", "2nd_manual"),
)
UNNAMED = "a mask whose name is no image's"
HELD = "(set|data|dataset|imgs?|images?|masks?|annot|labels?|s?daten|s?bilder|s?satz)?"
SPLIT_WORDS = {
    "train": re.compile("(train|training|trn)" + HELD),
    "val": re.compile("(val|valid|validation|dev)" + HELD),
    "test": re.compile("(test|testing|tst|holdout)" + HELD),
}


@dataclass(frozen=True)
class Paired:
    """The files of a folder.

    Attributes:
        images: Every image, in natural order.
        masks: The masks of an image; none where there are none.
        conflicts: Images with masks in two places, and these masks.
        left_out: Files that are neither, and why.
        notes: What was decided, in words.
    """

    images: tuple[Path, ...]
    masks: Mapping[Path, tuple[Path, ...]]
    conflicts: Mapping[Path, tuple[Path, ...]]
    left_out: Mapping[Path, str]
    notes: tuple[str, ...] = ()


def walk(root: Path) -> Iterator[Path]:
    """Yield every file below ``root``, links followed once, in natural order, without litter."""
    seen = set()
    for folder, below, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted((n for n in below if not LITTER_FOLDER.match(n)), key=natural)
        for name in sorted(files, key=natural):
            if not LITTER.search(name):
                yield in_utf8(Path(folder, name))


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts 2 before 10."""
    return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d*)", name)]


def normal(name: str) -> str:
    """Return a name as it is compared: composed Unicode, without case."""
    return unicodedata.normalize("NFC", name).casefold()


def split_word(name: str) -> str | None:
    """Return the split that a folder's or a list's name speaks of: "train", "val" or "test"."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    found = {
        split for split, pattern in SPLIT_WORDS.items()
        for word in words if pattern.fullmatch(word.lower())
    }  # fmt: skip
    nnunet = re.fullmatch(r"(?:images|labels)(Tr|Ts|Val)", name)
    if nnunet:
        found.add({"Tr": "train", "Ts": "test", "Val": "val"}[nnunet[1]])
    return found.pop() if len(found) == 1 else None


def part_of(path: Path, root: Path) -> str | None:
    """Return the split that the folders of a file below ``root`` speak of."""
    parts = path.parent.relative_to(root).parts
    return next((word for part in parts if (word := split_word(part))), None)


def pair(root: Path) -> Paired:
    """Find the images and masks below a folder."""
    left_out: dict[Path, str] = {}
    images, masks = _kinds(root, left_out)
    found, conflicts, notes = _Matching(root, images, masks, left_out).run()
    if not found and not conflicts:  # named like masks, but there is nothing that they are masks of
        by_name = [path for path in masks if not in_mask_folder(path, root)]
        images = sorted([*images, *by_name], key=lambda p: natural(p.relative_to(root).as_posix()))
        for path in by_name:
            left_out.pop(path, None)
    if any(_in_image_folder(path, root) for path in images):
        loose = [p for p in images if p not in found and p not in conflicts
                 and _above_image_folder(p, images, root)]  # fmt: skip
        left_out.update(dict.fromkeys(loose, "beside the folder of images, without a mask"))
        images = [path for path in images if path not in set(loose)]
    return Paired(tuple(images), found, conflicts, left_out, tuple(notes))


def find_images(root: Path) -> list[Path]:
    """Return the images below a folder: its masks, litter and loose pictures left out."""
    found = pair(root)
    if found.images:
        return list(found.images)
    return [path for path in walk(root) if is_image(path)]


def _kinds(root: Path, left_out: dict[Path, str]) -> tuple[list[Path], list[Path]]:
    """Return images and masks: of images/ and masks/ alone when both are there, else of all."""
    folders = [folder for folder in root.iterdir() if folder.is_dir()]
    named = [folder for folder in folders if folder.name.lower() == "images"]
    marked = [folder for folder in folders if MASK_FOLDER.search(folder.name)]
    images: list[Path] = []
    masks: list[Path] = []
    paths = [path for path in walk(root) if is_image(path)]
    paths.sort(key=lambda path: natural(path.relative_to(root).as_posix()))
    stems = {normal(path.stem) for path in paths}
    for path in paths:
        top = path.relative_to(root).parts[0]
        loose_folder = named and marked and root / top not in (*named, *marked)
        if loose_folder and not split_word(top):
            left_out[path] = "beside the folders of images and masks"
        elif in_mask_folder(path, root) or (
            not _in_image_folder(path, root) and _ends_as_mask(path.stem, stems)
        ):
            masks.append(path)
        else:
            images.append(path)
    return images, masks


def _ends_as_mask(stem: str, stems: Container[str]) -> bool:
    rest = MASK_ENDING.sub("", normal(stem))
    return bool(SURE_ENDING.search(stem)) or (rest != normal(stem) and rest in stems)


def in_mask_folder(path: Path, root: Path) -> bool:
    """Return whether the nearest folder that says what it holds says masks."""
    for part in reversed(path.parent.relative_to(root).parts):
        if IMAGE_FOLDER.fullmatch(part):
            return False
        if MASK_FOLDER.search(part):
            return True
    return False


def _in_image_folder(path: Path, root: Path) -> bool:
    parts = path.parent.relative_to(root).parts
    return any(IMAGE_FOLDER.fullmatch(part) for part in parts) and not in_mask_folder(path, root)


def _above_image_folder(path: Path, images: Sequence[Path], root: Path) -> bool:
    """Whether a picture lies loose in a folder that holds the folder of images."""
    return not _in_image_folder(path, root) and any(
        path.parent in other.parent.parents for other in images if _in_image_folder(other, root)
    )


@dataclass
class _Matching:
    """Gives every mask to the image that it names, the nearest one where several do."""

    root: Path
    images: list[Path]
    masks: list[Path]
    left_out: dict[Path, str]
    keys: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    cores: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))

    def run(self) -> tuple[dict[Path, tuple[Path, ...]], dict[Path, tuple[Path, ...]], list[str]]:
        """Return masks by image, conflicts by image, and notes."""
        for path in self.images:
            self.keys[normal(path.stem)].append(path)
            self.cores[_core(path.stem, IMAGE_START, IMAGE_ENDING)].append(path)
        given: dict[Path, list[Path]] = defaultdict(list)
        unnamed = []
        for mask in self.masks:
            image = self._named(mask)
            if image is None:
                unnamed.append(mask)
            else:
                given[image].append(mask)
        unnamed = self._by_start(unnamed, given)
        unnamed = self._by_number(unnamed, given)
        unnamed = self._by_case(unnamed, given)
        self.left_out.update(dict.fromkeys(unnamed, UNNAMED))
        return self._settle(given)

    def _named(self, mask: Path) -> Path | None:
        """Return the image that a mask's name, or its folder's, is that of."""
        stem = normal(mask.stem)
        bare = MASK_START.sub("", MASK_ENDING.sub("", READER.sub("", stem)))
        folders = [normal(part) for part in mask.parent.relative_to(self.root).parts[::-1]]
        tries = [
            *((self.keys, key) for key in (stem, MASK_ENDING.sub("", stem), bare)),
            (self.cores, _core(stem, MASK_START, MASK_ENDING)),
            (self.cores, _core(bare, IMAGE_START, IMAGE_ENDING)),
            *((self.keys, key) for key in (NUMBERED.sub("", stem), NUMBERED.sub("", bare))),
            *((self.keys, key) for key in folders),
        ]
        for table, key in tries:
            if key in table:
                return max(table[key], key=lambda image: self.nearness(mask, image))
        return None

    def nearness(self, mask: Path, image: Path) -> tuple[bool, int]:
        """Return whether both are of one split, and how many folders they share."""
        mine, other = (path.parent.relative_to(self.root).parts for path in (mask, image))
        shared = sum((Counter(mine) & Counter(other)).values())
        return part_of(mask, self.root) == part_of(image, self.root), shared

    def _by_start(self, masks: list[Path], given: dict[Path, list[Path]]) -> list[Path]:
        """Pair ``p12_polyp1`` with ``p12``, the longest such name of an image without a mask."""
        bare = {key: [p for p in paths if p not in given] for key, paths in self.keys.items()}
        left, found = [], []
        for mask in masks:
            stem = normal(mask.stem)
            starts = [stem[: match.start()] for match in re.finditer(r"[ _.-]", stem)]
            images = next((bare[start] for start in starts[::-1] if bare.get(start)), [])
            if images and in_mask_folder(mask, self.root):
                found.append((max(images, key=lambda image: self.nearness(mask, image)), mask))
            else:
                left.append(mask)
        for image, mask in found:
            given[image].append(mask)
        return left

    def _by_number(self, masks: list[Path], given: dict[Path, list[Path]]) -> list[Path]:
        """Pair ``p12`` with ``12`` where numbers alone tell the files of two folders apart."""
        images = [path for path in self.images if path not in given]
        left = []
        for folder in sorted({mask.parent for mask in masks}):
            inside = [mask for mask in masks if mask.parent == folder]
            near = _nearest_folder(inside[0], images, self)
            there = {_number(path): path for path in images if path.parent == near}
            numbers = [_number(mask) for mask in inside]
            alike = len(there) == sum(path.parent == near for path in images) and None not in there
            if alike and len(set(numbers)) == len(numbers) and set(numbers) <= set(there):
                for number, mask in zip(numbers, inside, strict=True):
                    given[there[number]].append(mask)
            else:
                left += inside
        return left

    def _by_case(self, masks: list[Path], given: dict[Path, list[Path]]) -> list[Path]:
        """Give masks of any name to the one image of their case's folder."""
        inside: dict[Path, list[Path]] = defaultdict(list)
        for image in self.images:
            for folder in image.parents:
                inside[folder].append(image)
                if folder == self.root:
                    break
        left = []
        for mask in masks:
            case = next((f for f in mask.parents if f in inside), self.root)
            alone = inside[case] if len(inside[case]) == 1 else []
            if alone and all(other.parent == mask.parent for other in given[alone[0]]):
                given[alone[0]].append(mask)
            else:
                left.append(mask)
        return left

    def _settle(
        self, given: dict[Path, list[Path]]
    ) -> tuple[dict[Path, tuple[Path, ...]], dict[Path, tuple[Path, ...]], list[str]]:
        """Return the nearest masks of every image, or the conflict of several."""
        found: dict[Path, tuple[Path, ...]] = {}
        conflicts: dict[Path, tuple[Path, ...]] = {}
        notes: dict[str, None] = {}
        for image, masks in given.items():
            nearest = max(self.nearness(mask, image) for mask in masks)
            kept = [mask for mask in masks if self.nearness(mask, image) == nearest]
            self.left_out.update(dict.fromkeys(set(masks) - set(kept), "another mask is nearer"))
            kept = self._without_known(kept, notes)
            if len(kept) > 1 and not _parts_of_one(kept, image):
                conflicts[image] = tuple(kept)
            else:
                found[image] = tuple(kept)
        several = sum(len(masks) > 1 for masks in found.values())
        if several:
            notes[f"{several} images have several masks each: their union is the mask"] = None
        forms = sum(
            len(m) == 1 and image.stem != m[0].stem and normal(image.stem) == normal(m[0].stem)
            for image, m in found.items()
        )
        if forms:
            notes[f"{forms} masks are spelled as their image but for case or Unicode form"] = None
        return found, conflicts, list(notes)

    def _without_known(self, masks: list[Path], notes: dict[str, None]) -> list[Path]:
        folders = {mask.parent.name.lower() for mask in masks}
        for wanted, other in KNOWN_PAIRS:
            if {wanted, other} <= folders:
                rest = [mask for mask in masks if mask.parent.name.lower() == other]
                self.left_out.update(dict.fromkeys(rest, f"{wanted} is taken instead"))
                notes[f"the masks of {wanted} are taken, those of {other} left out"] = None
                masks = [mask for mask in masks if mask not in rest]
        return masks


def _core(stem: str, start: re.Pattern[str], ending: re.Pattern[str]) -> str:
    return start.sub("", ending.sub("", normal(stem)))


def _number(path: Path) -> int | None:
    digits = re.findall(r"\d+", path.stem)
    return int(digits[-1]) if digits else None


def _nearest_folder(mask: Path, images: Sequence[Path], matching: _Matching) -> Path | None:
    near = max(images, key=lambda image: matching.nearness(mask, image), default=None)
    return near.parent if near else None


def _parts_of_one(masks: Sequence[Path], image: Path) -> bool:
    """Whether files are the numbered parts of one mask: one folder, names that differ by number."""
    if len({mask.parent for mask in masks}) > 1 or any(READER.search(m.stem) for m in masks):
        return False
    if len({mask.stem for mask in masks}) < len(masks):
        return False  # one name, two suffixes
    start = normal(image.stem)
    if all(normal(mask.stem).startswith(start) for mask in masks):
        rests = {normal(mask.stem).removeprefix(start) for mask in masks}
        return len({re.sub(r"[ _.-]*\(?\d*\)?$", "", rest) for rest in rests}) == 1
    bare = {
        NUMBERED.sub("", re.sub(r"\d+$", "", normal(mask.stem)).rstrip(" _.-(")) for mask in masks
    }
    stems = {MASK_ENDING.sub("", normal(mask.stem)) for mask in masks}
    plain = sum(not re.search(r"\d\)?$", mask.stem) for mask in masks)
    return len(bare) == 1 or (len(stems) > 1 and plain == 0) or len(stems) > 1 and plain > 1
