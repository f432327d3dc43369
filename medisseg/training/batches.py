"""A split held in memory as uint8, and the order of its batches.

Images are decoded and resized once (2000 images of 256 x 256 are 0.5 GB). The order of an epoch
depends on (seed, stage, epoch) alone, and a batch is cut into equal shares for the processes, so
that a resumed run, or one on two processes, sees the batches of an uninterrupted single one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medisseg.config import TrainConfig
from medisseg.data import official, splits
from medisseg.data.folder import IMAGE_FOLDER, VOID, SegmentationFolder, load
from medisseg.data.negatives import Negatives
from medisseg.data.options import DataFolder, SplitConfig
from medisseg.data.shares import doubts, foreground_line
from medisseg.data.volumes import SLICE
from medisseg.errors import UserError

# Names of folders that say nothing about whose images they hold.
PARTS = ("train", "val", "validation", "test")

Batches = DataLoader[dict[str, Tensor]]


class Arrays(Dataset[dict[str, Tensor]]):
    """Images uint8 [N, 3, h, w] and masks uint8 [N, h, w]; an item is a batch of indices.

    Args:
        images: Pixels.
        masks: Class indices.
        names: Of the images.
        weights: How often each is drawn in an epoch; None: once.
        sources: The data folder of each; None: all of one.
    """

    def __init__(
        self,
        images: Tensor,
        masks: Tensor,
        names: Sequence[str],
        weights: Sequence[float] | None = None,
        sources: Sequence[str] | None = None,
    ) -> None:
        self.images, self.masks, self.names = images, masks, tuple(names)
        self.weights = np.ones(len(self.names)) if weights is None else np.asarray(weights)
        self.sources = ("",) * len(self.names) if sources is None else tuple(sources)

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def case_names(self) -> tuple[str, ...] | None:
        """The volume of each slice; None unless all are slices of volumes."""
        matches = [SLICE.match(name.rsplit("/", 1)[-1]) for name in self.names]
        return tuple(match["case"] for match in matches if match) if all(matches) else None

    @cached_property
    def cases(self) -> tuple[int, ...] | None:
        """The number of each slice's volume, from 0; None unless all are slices of volumes."""
        if self.case_names is None:
            return None
        order = {case: index for index, case in enumerate(dict.fromkeys(self.case_names))}
        return tuple(order[case] for case in self.case_names)

    @property
    def drawn(self) -> int:
        """Images of an epoch, to within one."""
        return max(1, int(self.weights.sum()))

    def __getitem__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return a batch; index i + k N is image i drawn for the k-th time after the first."""
        drawn = torch.as_tensor(indices)
        chosen = drawn % len(self)
        return {"image": self.images[chosen], "mask": self.masks[chosen], "index": drawn}


@dataclass(frozen=True)
class Data:
    """What a run trains on and what chooses its epoch, with warnings about both, and notes."""

    train: Arrays
    validation: Arrays
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_data(config: TrainConfig) -> Data:
    """Find, check and decode the images of a run.

    Raises:
        UserError: Anything wrong with a folder, its lists or its files.
    """
    folders = open_folders(config)
    parts, warnings = choose_names(config, folders)
    sources = [*config.data, *config.negatives]
    labels = source_names(sources)
    arrays = {}
    for part in ("train", "validation"):
        loaded = [
            load(folder.part(names), config.input)
            for folder, names in zip(folders, parts[part], strict=True)
        ]
        counts = [len(names) for names in parts[part]]
        prefixes = [f"{label}/" if len(sources) > 1 else "" for label in labels]
        arrays[part] = Arrays(
            torch.from_numpy(np.concatenate([images for images, _ in loaded])),
            torch.from_numpy(np.concatenate([masks for _, masks in loaded])),
            [
                prefix + name
                for prefix, names in zip(prefixes, parts[part], strict=True)
                for name in names
            ],
            np.repeat([source.weight for source in sources], counts).tolist(),
            np.repeat(labels, counts).tolist(),
        )
    shares = [foreground(array.masks) for array in arrays.values()]
    notes = [f"{k}: {note}" for k, folder in zip(labels, folders, strict=True)
             for note in folder.notes()]  # fmt: skip
    notes += [f"{part}: {foreground_line(s)}" for part, s in zip(arrays, shares, strict=True)]
    warnings += doubts(np.concatenate(shares))
    if arrays["train"].cases is not None:
        warnings += mixing(config)
    return Data(arrays["train"], arrays["validation"], tuple(warnings), tuple(notes))


def mixing(config: TrainConfig) -> list[str]:
    """Return a warning about augmentation that slices of volumes do not bear.

    Their channels are neighbouring slices, which changes of saturation and hue and grey mix, and a
    flip makes a left organ a right one.
    """
    colors = {"second_view": config.second_view} if 1 in config.stages else {}
    keys = []
    for number in config.stages:
        augment = config.stage(number).augment
        colors[f"stage{number}.augment.color"] = augment.color
        flips = ("flip_horizontal_p", "flip_vertical_p")
        keys += [f"stage{number}.augment.{name}" for name in flips if getattr(augment, name)]
    for where, color in colors.items():
        keys += [f"{where}.jitter"] if color.jitter_p and any(color.jitter[2:]) else []
        keys += [f"{where}.gray_p"] if color.gray_p else []
    if not keys:
        return []
    return [
        "slices of volumes: flips exchange left and right, saturation, hue and grey mix the "
        f"neighbouring slices; set to 0 as synapse.yaml does: {', '.join(keys)}"
    ]


def foreground(masks: Tensor) -> np.ndarray:
    """Return the foreground share of every mask, uint8 [N, h, w]; void counts as background."""
    inside = (masks > 0) & (masks != VOID)
    return inside.float().mean((1, 2)).numpy()


def source_names(sources: Sequence[DataFolder]) -> list[str]:
    """Return a short name for each folder: its last part, or as much of it as tells them apart;
    ``polyp-free/train``, not ``train``."""
    paths = [Path(source.path).resolve().parts for source in sources]
    least = [2 if IMAGE_FOLDER.fullmatch(path[-1]) or path[-1] in PARTS else 1 for path in paths]
    short: list[str] = []
    for more in range(max(map(len, paths))):
        depths = zip(paths, least, strict=True)
        short = ["/".join(path[-depth - more :]) for path, depth in depths]
        if len(set(short)) == len(short):
            break
    twice = next((name for name in short if short.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"the folder {twice} is given twice; expected each once (with a weight)")
    return short


def open_folders(config: TrainConfig) -> list[SegmentationFolder | Negatives]:
    """Return the run's data folders with all their images, then those without lesions."""
    return [
        *(
            SegmentationFolder(
                source.path, [], classes=config.classes, labels=config.labels,
                unmasked=config.unmasked,
            )
            for source in config.data
        ),
        *(Negatives(source.path) for source in config.negatives),
    ]  # fmt: skip


def choose_names(
    config: TrainConfig, folders: Sequence[SegmentationFolder | Negatives] | None = None
) -> tuple[dict[str, list[list[str]]], list[str]]:
    """Return the names of train and validation, one list a folder (those without lesions last),
    and warnings about them."""
    parts: dict[str, list[list[str]]] = {"train": [], "validation": []}
    warnings: list[str] = []
    images: dict[str, dict[str, Path]] = defaultdict(dict)
    opened = folders or open_folders(config)
    for source, folder in zip([*config.data, *config.negatives], opened, strict=True):
        split = source.split or config.split
        if isinstance(folder, Negatives):
            found, files = folder.parts(split.fraction), folder.files
        else:
            files = folder.images()
            found, said = folder_names(folder, split)
            warnings += said
        for part, names in found.items():
            inside = {f"{source.path}/{name}": files[name] for name in names if name in files}
            images[part if part in parts else f"{source.path} {part}"] |= inside
        for part in parts:
            parts[part].append(found[part])
    return parts, warnings + splits.duplicates(images)


def folder_names(
    folder: SegmentationFolder, split: SplitConfig
) -> tuple[dict[str, list[str]], list[str]]:
    """Return a folder's names of train, validation and what is held out, and warnings.

    What the folder itself comes with as another split is never trained on.
    """
    root, images = folder.root, folder.images()
    every = [name for name in images if folder.usable(name)]

    def listed(name: str) -> list[str]:
        if split.official is not None:
            return official.names(split.official, name, every, lambda: comes_with(name))
        found = splits.names(root, name, images, seed=split.seed, groups=split.groups)
        return [name for name in found if folder.usable(name)]

    def comes_with(name: str) -> list[str] | None:
        part = splits.find(root, name, images)
        return None if part is None else list(part.names)

    def choice(value: str | None, part: str) -> list[str] | None:
        if value == "auto":
            return listed(part) if splits.find(root, part, images) else None
        return None if value is None else listed(value)

    groups = splits.group_table(root, split.groups, every)
    validation = None if split.folds else choice(split.validation, "val")
    train = choice(split.train, "train")
    there = splits.find_parts(root, images)
    own = bool(there) and split.official is None
    absent = [name for name in split.held_out if own and not splits.find(root, name, images)]
    warnings = [f"{root} comes without {name!r}, which is to be held out" for name in absent]
    held = {name: listed(name) for name in split.held_out if name not in absent}
    if train is None and split.official is not None:
        raise UserError(
            f"split.official={split.official} with split.train={split.train or 'null'} would train "
            "on whatever is there, its test images too; name the list: split.train=train, or set "
            "split.official= (empty), which says that you know"
        )
    if train is None:
        chosen = {split.validation, *split.held_out}
        others = [p.names for name, p in there.items() if splits.is_held(name) or name in chosen]
        taken = {name for part in [*others, *held.values(), validation or []] for name in part}
        train = [name for name in every if name not in taken]
    if split.folds:
        train, validation = splits.take_fold(train, split.folds, split.fold, groups, split.seed)
    elif validation is None:
        train, validation = splits.take_out(train, split.fraction, groups, split.seed)
    parts = {"train": train, "validation": validation, **held}
    return parts, warnings + splits.refuse_leaks(parts, groups)


def train_order(
    count: int, batch: int, key: Sequence[int], weights: np.ndarray | None = None
) -> list[np.ndarray]:
    """Return the batches of an epoch, index arrays [batch], the last incomplete one left out.

    Every index is drawn once, or ``weights`` [count] times on average over the epochs, by
    systematic sampling. An index drawn again stands as index + k ``count``.
    """
    order = np.arange(count)
    if weights is not None and np.any(weights != 1):
        start = np.random.default_rng((*key, count)).random()
        often = np.diff(np.floor(np.cumsum(weights) + start), prepend=0.0).astype(int)
        again = [np.arange(times) * count for times in often]
        order = np.repeat(order, often) + np.concatenate(again)
    order = np.random.default_rng(tuple(key)).permutation(order)
    if len(order) < batch:
        return [order]
    return list(order[: len(order) - len(order) % batch].reshape(-1, batch))


def train_batches(
    arrays: Arrays, batch: int, key: Sequence[int], rank: int = 0, world: int = 1
) -> Batches:
    """Return this process's share of an epoch's batches.

    Raises:
        UserError: The batch cannot be shared equally by the processes.
    """
    if batch % world or len(arrays) < world:
        raise UserError(
            f"a batch of {min(batch, len(arrays))} cannot be shared by {world} processes; "
            f"expected a multiple of {world}"
        )
    order = train_order(len(arrays), batch, key, arrays.weights)
    shares = [part[: len(part) - len(part) % world][rank::world] for part in order]
    return _loader(arrays, [part.tolist() for part in shares])


def validation_batches(arrays: Arrays, batch: int, rank: int = 0, world: int = 1) -> Batches:
    """Return this process's share of the validation images, each in one process only."""
    indices = list(range(len(arrays)))[rank::world]
    parts = [indices[start : start + batch] for start in range(0, len(indices), batch)]
    return _loader(arrays, parts)


def _loader(arrays: Arrays, parts: list[list[int]]) -> Batches:
    """Batches in pinned memory where there is a GPU, which then copies them beside its work."""
    return DataLoader(arrays, batch_size=None, sampler=parts, pin_memory=torch.cuda.is_available())
