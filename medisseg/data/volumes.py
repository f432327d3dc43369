"""Volumes as slices (2.5D): a slice's image holds it and its neighbours as three channels.

Read are the files that Synapse multi-organ CT is usually passed on as: ``.npz`` with ``image`` and
``label``, of one slice [H, W] (``case0005_slice012.npz``) or of a volume [D, H, W], and ``.h5``
volumes; and NIfTI images with their labels. The slices of one case stay on
one side of a seeded split.
"""

from __future__ import annotations

import functools
import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medisseg.data.layout import in_mask_folder, walk
from medisseg.data.medical import nifti_spacing, nifti_volume
from medisseg.data.reading import BadFile
from medisseg.errors import UserError

SUFFIXES = (".npz", ".npy.h5", ".h5", ".nii", ".nii.gz")
LABEL = re.compile(r"(^|[_-])(labels?|seg|segmentation|mask|gt)$", re.I)
CHANNEL = re.compile(r"_0000$")  # of nnU-Net's names of images
MOST_BYTES = 4_000_000_000  # of a file's arrays, unpacked
SLICE = re.compile(r"^(?P<case>.+?)_slice_?(?P<number>\d+)$", re.I)
# Hounsfield units, as in TransUNet (Chen et al. 2021): soft tissue.
WINDOW = (-125.0, 275.0)


@dataclass(frozen=True)
class Slice:
    """One slice: its file and case, its index in a volume (None: the file is the slice), the
    files of its neighbours below and above where slices are files, and the file of its labels
    where these are another one."""

    path: Path
    case: str
    index: int | None = None
    neighbours: tuple[Path, Path] | None = None
    labels: Path | None = None


def find_slices(root: Path) -> dict[str, Slice]:
    """Return every slice below ``root`` by name, such as ``case0005_slice012``."""
    every = [path for path in walk(root) if path.name.lower().endswith(SUFFIXES)]
    found = _nifti_slices([path for path in every if _suffix(path).startswith(".nii")], root)
    paths = (path for path in every if not _suffix(path).startswith(".nii"))
    slices: dict[tuple[str, int], Path] = {}
    for path in paths:
        stem = path.name[: -len(_suffix(path))]
        match = SLICE.match(stem)
        if match:
            slices[match["case"], int(match["number"])] = path
            continue
        depth = len(_volume(path)[0])
        found |= {f"{stem}_slice{k:03}": Slice(path, stem, k) for k in range(depth)}
    for (case, number), path in slices.items():
        below = slices.get((case, number - 1), path)
        above = slices.get((case, number + 1), path)
        found[path.name[: -len(_suffix(path))]] = Slice(path, case, None, (below, above))
    return found


def _nifti_slices(paths: Sequence[Path], root: Path) -> dict[str, Slice]:
    """Return the slices of NIfTI images whose labels are another file of the same name.

    Known are ``imagesTr/a_0000.nii.gz`` with ``labelsTr/a.nii.gz``, ``images/a`` with ``masks/a``,
    ``a.nii.gz`` with ``a_seg.nii.gz``, and a folder a case with ``image`` and ``label``.

    Raises:
        UserError: An image without labels.
    """
    found: dict[str, Slice] = {}
    names = {path: path.name[: -len(_suffix(path))] for path in paths}
    marked = [path for path in paths if in_mask_folder(path, root) or LABEL.search(names[path])]
    labels = {LABEL.sub("", names[path]) or str(path.parent): path for path in marked}
    for path in paths:
        if path in marked:
            continue
        name = CHANNEL.sub("", names[path])
        other = labels.get(name) or labels.get(str(path.parent))
        if other is None:
            raise UserError(
                f"{path} has no labels; expected labels/{name}.nii.gz, {name}_seg.nii.gz, or a "
                "folder a case with image.nii.gz and label.nii.gz"
            )
        case = path.parent.name if labels.get(str(path.parent)) == other else name
        for k in range(len(_volume(path, other)[0])):
            found[f"{case}_slice{k:03}"] = Slice(path, case, k, None, other)
    return found


def spacing_of(part: Slice) -> tuple[float, float, float] | None:
    """Return the millimetres between a volume's slices, rows and columns; None: the file is silent.

    NIfTI says them in its header; of ``.npz`` and ``.h5`` an array ``spacing`` of three is taken.

    Raises:
        BadFile: Not three positive numbers.
    """
    path = part.path
    if _suffix(path).startswith(".nii"):
        found = nifti_spacing(path)
    elif part.index is None:
        return None
    elif (stored := _array(path, "spacing")) is not None:
        found = tuple(float(value) for value in stored.ravel())
    else:
        return None
    if len(found) != 3 or not all(0 < value < 1000 for value in found):
        raise BadFile(f"{path} has the spacing {found}; expected three positive millimetres")
    return found


def _array(path: Path, name: str) -> npt.NDArray[np.number] | None:
    """Return an array of ``.npz`` or ``.h5``; None where there is none of that name."""
    if _suffix(path) == ".npz":
        with np.load(path) as file:
            return file[name] if name in file.files else None
    return _read_h5(path, name).get(name)


def expand(names: Iterable[str], available: Iterable[str]) -> list[str]:
    """Return the names with every case replaced by its slices."""
    there = list(available)
    known = set(there)
    found: list[str] = []
    for name in names:
        start = f"{name}_slice"
        inside = [] if name in known else [other for other in there if other.startswith(start)]
        found.extend(inside or [name])
    return found


def read_slice(part: Slice, classes: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return a slice as uint8 [H, W, 3] (below, itself, above) and class indices uint8 [H, W].

    Raises:
        BadFile: Not readable, of other shapes, or with labels outside the classes.
    """
    if part.index is None:
        assert part.neighbours is not None
        image, label = _volume(part.path)
        layers = [_volume(part.neighbours[0])[0][0], image[0], _volume(part.neighbours[1])[0][0]]
        labels = label[0]
    else:
        image, label = _volume(part.path, part.labels)
        last = len(image) - 1
        layers = [image[min(max(part.index + step, 0), last)] for step in (-1, 0, 1)]
        labels = label[part.index]
    found = np.unique(labels)
    top = max(classes, 2) - 1
    if found.min() < 0 or found.max() > top or np.any(found != np.rint(found)):
        raise BadFile(
            f"{part.path} holds the labels {', '.join(map(str, found[:10]))}; "
            f"expected class indices 0 to {top}"
        )
    return np.stack([_windowed(layer) for layer in layers], axis=2), labels.astype(np.uint8)


def _scaled(volume: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return intensities that are no Hounsfield units in [0, 1]: 0.5 to 99.5 % of the volume."""
    if volume.min() < -100:
        return volume
    low, high = np.percentile(volume, [0.5, 99.5])
    scaled: npt.NDArray[np.float32] = (volume - low) / max(float(high - low), 1e-6)
    return np.clip(scaled, 0, 1)


def _windowed(layer: npt.NDArray[np.number]) -> npt.NDArray[np.uint8]:
    """Return intensities as uint8: of [0, 1] as they are, else Hounsfield units by the window."""
    values = layer.astype(np.float32)
    low, high = (0.0, 1.0) if values.min() >= 0 and values.max() <= 1 else WINDOW
    scaled: npt.NDArray[np.float32] = np.clip((values - low) / (high - low), 0, 1)
    return np.rint(255 * scaled).astype(np.uint8)


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return next(suffix for suffix in SUFFIXES if name.endswith(suffix))


@functools.lru_cache(maxsize=6)  # a slice and its neighbours, read by two threads
def _volume(
    path: Path, labels: Path | None = None
) -> tuple[npt.NDArray[np.number], npt.NDArray[np.number]]:
    """Return image and label of a file, or of two, as [D, H, W]."""
    image: npt.NDArray[np.number]
    label: npt.NDArray[np.number]
    try:
        if labels is not None:
            image, label = _scaled(nifti_volume(path)), nifti_volume(labels)
        elif _suffix(path) == ".npz":
            with zipfile.ZipFile(path) as packed:
                claimed = sum(part.file_size for part in packed.infolist())
            if claimed > MOST_BYTES:
                raise BadFile(f"{path} claims {claimed:,} bytes; expected at most {MOST_BYTES:,}")
            with np.load(path) as file:
                image, label = file["image"], file["label"]
        else:
            arrays = _read_h5(path, "image", "label")
            image, label = arrays["image"], arrays["label"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BadFile(f"{path} is not readable; expected arrays 'image' and 'label'") from error
    if image.shape != label.shape or image.ndim not in (2, 3):
        raise BadFile(
            f"{path}: image is {image.shape} and label {label.shape}; "
            "expected both [H, W] or [D, H, W]"
        )
    return (image, label) if image.ndim == 3 else (image[None], label[None])


def _read_h5(path: Path, *names: str) -> dict[str, npt.NDArray[np.number]]:
    """Return those of an HDF5 file's arrays that are there, by name.

    Raises:
        BadFile: One is larger than ``MOST_BYTES``, no array of numbers, or kept in another file.
    """
    import h5py

    found = {}
    with h5py.File(path) as file:
        for name in names:
            link = file.get(name, getlink=True)
            if link is None:
                continue
            array = file[name] if isinstance(link, h5py.HardLink) else None
            if not isinstance(array, h5py.Dataset) or array.dtype.kind not in "fiub":
                raise BadFile(f"{path}: {name!r} is no array of numbers; expected it in the file")
            if array.external or array.is_virtual:
                raise BadFile(f"{path}: {name!r} is kept in other files; expected it in this one")
            if (size := array.nbytes) > MOST_BYTES:
                raise BadFile(f"{path} claims {size:,} bytes; expected at most {MOST_BYTES:,}")
            found[name] = array[()]
    return found
