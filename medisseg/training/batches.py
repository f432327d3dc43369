"""A split held in memory as uint8, and the order of its batches.

Images are decoded and resized once (2000 images of 256 x 256 are 0.5 GB). The order of an epoch
depends on (seed, stage, epoch) alone, and a batch is cut into equal shares for the processes, so
that a resumed run, or one on two processes, sees the batches of an uninterrupted single one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medisseg.config import TrainConfig
from medisseg.data import splits
from medisseg.data.folder import SegmentationFolder, find_files, load
from medisseg.errors import UserError


class Arrays(Dataset):
    """Images uint8 [N, 3, h, w] and masks uint8 [N, h, w]; an item is a batch of indices."""

    def __init__(self, images: Tensor, masks: Tensor, names: Sequence[str]) -> None:
        self.images, self.masks, self.names = images, masks, tuple(names)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        chosen = torch.as_tensor(indices)
        return {"image": self.images[chosen], "mask": self.masks[chosen], "index": chosen}


@dataclass(frozen=True)
class Data:
    """What a run trains on and what chooses its epoch, with warnings about both."""

    train: Arrays
    validation: Arrays
    warnings: tuple[str, ...] = ()


def read_data(config: TrainConfig) -> Data:
    """Find, check and decode the images of a run.

    Raises:
        UserError: Anything wrong with the folder, its lists or its files.
    """
    parts, warnings = choose_names(config)
    arrays = {}
    for part in ("train", "validation"):
        folder = SegmentationFolder(
            config.data, parts[part], classes=config.classes, labels=config.labels
        )
        images, masks = load(folder, config.input)
        arrays[part] = Arrays(torch.from_numpy(images), torch.from_numpy(masks), parts[part])
    return Data(arrays["train"], arrays["validation"], tuple(warnings))


def choose_names(config: TrainConfig) -> tuple[dict[str, list[str]], list[str]]:
    """Return the names of train, validation and the held-out lists, and warnings about them."""
    root, split = Path(config.data), config.split
    files = find_files(root)
    images = {name: found.image for name, found in files.items()}
    every = list(images)

    def listed(name: str) -> list[str]:
        return splits.names(root, name, images, seed=split.seed, groups=split.groups)

    def choice(value: str | None, part: str) -> list[str] | None:
        if value == "auto":
            there = splits.find_list(root, part) or splits.in_folder(root, part, images)
            return listed(part) if there else None
        return None if value is None else listed(value)

    groups = splits.group_table(root, split.groups, every)
    held = {name: listed(name) for name in split.held_out}
    validation = choice(split.validation, "val")
    train = choice(split.train, "train")
    if train is None:
        taken = {name for part in [*held.values(), validation or []] for name in part}
        train = [name for name in every if name not in taken]
    if validation is None:
        train, validation = splits.take_out(train, split.fraction, groups, split.seed)
    parts = {"train": train, "validation": validation, **held}
    warnings = splits.refuse_leaks(parts, groups)
    warnings += splits.duplicates(
        {
            part: {name: images[name] for name in names if name in images}
            for part, names in parts.items()
        }
    )
    return parts, warnings


def train_order(count: int, batch: int, key: Sequence[int]) -> list[np.ndarray]:
    """Return the batches of an epoch: every index once, the last incomplete batch left out."""
    order = np.random.default_rng(tuple(key)).permutation(count)
    if count < batch:
        return [order]
    return list(order[: count - count % batch].reshape(-1, batch))


def train_batches(
    arrays: Arrays, batch: int, key: Sequence[int], rank: int = 0, world: int = 1
) -> DataLoader:
    """Return this process's share of an epoch's batches.

    Raises:
        UserError: The batch cannot be shared equally by the processes.
    """
    if batch % world or len(arrays) < world:
        raise UserError(
            f"a batch of {min(batch, len(arrays))} cannot be shared by {world} processes; "
            f"expected a multiple of {world}"
        )
    order = train_order(len(arrays), batch, key)
    shares = [part[: len(part) - len(part) % world][rank::world] for part in order]
    return _loader(arrays, [part.tolist() for part in shares])


def validation_batches(arrays: Arrays, batch: int, rank: int = 0, world: int = 1) -> DataLoader:
    """Return this process's share of the validation images, each in one process only."""
    indices = list(range(len(arrays)))[rank::world]
    parts = [indices[start : start + batch] for start in range(0, len(indices), batch)]
    return _loader(arrays, parts)


def _loader(arrays: Arrays, parts: list[list[int]]) -> DataLoader:
    """Batches in pinned memory where there is a GPU, which then copies them beside its work."""
    return DataLoader(arrays, batch_size=None, sampler=parts, pin_memory=torch.cuda.is_available())
