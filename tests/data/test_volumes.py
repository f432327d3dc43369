"""Volumes as slices with their neighbours as channels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from medisseg.data import splits, volumes
from medisseg.data.folder import SegmentationFolder
from medisseg.errors import UserError


def volume(seed: int, depth: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.random((depth, 32, 32)).astype(np.float32)
    return image, rng.integers(0, 9, (depth, 32, 32)).astype(np.float32)


def as_bytes(layer: np.ndarray) -> np.ndarray:
    return np.rint(255 * layer).astype(np.uint8)


def test_a_volume_gives_slices_with_their_neighbours(tmp_path: Path) -> None:
    image, label = volume(0)
    np.savez(tmp_path / "case0008.npz", image=image, label=label)
    folder = SegmentationFolder(tmp_path, classes=9, labels="classes")
    assert folder.names == tuple(f"case0008_slice{k:03}" for k in range(5))
    sample = folder[2]
    for channel, layer in enumerate(image[1:4]):
        assert np.array_equal(sample.image[:, :, channel], as_bytes(layer))
    assert np.array_equal(sample.mask, label[2])
    assert np.array_equal(folder[0].image[:, :, 0], as_bytes(image[0]))  # the edge repeats


def test_hdf5_volumes_are_read_as_transunet_stores_them(tmp_path: Path) -> None:
    image, label = volume(7)
    with h5py.File(tmp_path / "case0008.npy.h5", "w") as file:
        file.create_dataset("image", data=image, compression="gzip")
        file.create_dataset("label", data=label)
        file["spacing"] = [3.0, 0.7, 0.8]
    folder = SegmentationFolder(tmp_path, classes=9, labels="classes")
    assert folder.names == tuple(f"case0008_slice{k:03}" for k in range(5))
    assert np.array_equal(folder[2].image[:, :, 1], as_bytes(image[2]))
    assert np.array_equal(folder[2].mask, label[2])
    parts = list(volumes.find_slices(tmp_path).values())
    assert volumes.spacing_of(parts[0]) == (3.0, 0.7, 0.8)


def test_an_hdf5_file_is_not_believed(tmp_path: Path) -> None:
    """Its size is looked at first, and no link leads out of it."""
    path, secret = tmp_path / "case1.h5", tmp_path / "secret.bin"
    secret.write_bytes(bytes(4096))

    def said(fill: Callable[[h5py.File], object]) -> str:
        volumes._volume.cache_clear()
        path.unlink(missing_ok=True)
        with h5py.File(path, "w") as file:
            fill(file)
        with pytest.raises(UserError) as caught:
            volumes._volume(path)
        return str(caught.value)

    huge = (1 << 20, 1 << 10, 1 << 10)
    chunks = (1, 1 << 10, 1 << 10)
    assert "claims 4,398,046,511,104 bytes" in said(
        lambda file: file.create_dataset("image", huge, np.float32, chunks=chunks)
    )
    outside = [(str(secret), 0, 4096)]
    assert "kept in other files" in said(
        lambda file: file.create_dataset("image", (1, 32, 32), np.float32, external=outside)
    )
    assert "no array of numbers" in said(
        lambda file: file.__setitem__("image", h5py.ExternalLink("other.h5", "image"))
    )
    assert "no array of numbers" in said(lambda file: file.create_group("image"))
    assert "no array of numbers" in said(lambda file: file.__setitem__("image", "text"))
    assert "expected arrays 'image' and 'label'" in said(lambda file: file.create_group("x"))
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(UserError, match="is not readable"):
        volumes._volume(path)


def test_slices_as_files_find_their_neighbours(tmp_path: Path) -> None:
    image, label = volume(1)
    for k in (0, 1, 3):
        np.savez(tmp_path / f"case0005_slice00{k}.npz", image=image[k], label=label[k])
    folder = SegmentationFolder(tmp_path, classes=9, labels="classes")
    one, alone = folder[1], folder[2]
    assert np.array_equal(one.image[:, :, 0], as_bytes(image[0]))
    assert np.array_equal(one.image[:, :, 2], as_bytes(image[1]))  # there is no slice 2
    assert np.array_equal(alone.image[:, :, 0], as_bytes(image[3]))


def test_lists_name_cases_or_slices_and_splits_keep_cases_together(tmp_path: Path) -> None:
    for case in range(6):
        image, label = volume(case, depth=3)
        np.savez(tmp_path / f"case{case}.npz", image=image, label=label)
    folder = SegmentationFolder(tmp_path, classes=9, labels="classes")
    images = folder.images()
    (tmp_path / "test.txt").write_text("case4\ncase5.npy.h5\n")
    assert len(splits.names(tmp_path, "test", images)) == 6
    (tmp_path / "train.txt").write_text("case0_slice001\n")
    assert splits.names(tmp_path, "train", images) == ["case0_slice001"]
    groups = splits.group_table(tmp_path, None, folder.names)
    rest, taken = splits.take_out(folder.names, 0.3, groups, seed=0)
    assert len(taken) == 6 and not {groups[n] for n in rest} & {groups[n] for n in taken}


def test_hounsfield_units_are_windowed(tmp_path: Path) -> None:
    image = np.full((1, 32, 32), 75.0)
    image[0, 0] = -1000
    np.savez(tmp_path / "a.npz", image=image, label=np.zeros((1, 32, 32)))
    pixels = SegmentationFolder(tmp_path, classes=9, labels="classes")[0].image
    assert (pixels[0] == 0).all() and (pixels[1:] == 128).all()


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.full((1, 8, 8), 13), "labels 13; expected class indices 0 to 8"),
        (np.zeros((1, 8, 4)), "expected both"),
    ],
)
def test_wrong_labels_are_refused(tmp_path: Path, label: np.ndarray, message: str) -> None:
    np.savez(tmp_path / "a.npz", image=np.zeros((1, 8, 8)), label=label)
    with pytest.raises(UserError, match=message):
        SegmentationFolder(tmp_path, classes=9, labels="classes")[0]
