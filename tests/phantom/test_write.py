"""What ``medisseg phantom`` leaves on disk, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from medisseg import cli
from medisseg.errors import UserError
from medisseg.phantom import write_phantom
from medisseg.phantom.scenes import KINDS

FRAMES, IMAGES, SEED, SIZE = 26, 8, 3, (64, 80)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("written") / "phantom"
    write_phantom(out, frames=FRAMES, images=IMAGES, seed=SEED, size=SIZE)
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def masks(folder: Path) -> list[np.ndarray]:
    return [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted(folder.iterdir())]


def test_same_seed_same_bytes(written: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path / "again", frames=FRAMES, images=IMAGES, seed=SEED, size=SIZE)
    assert files(tmp_path / "again") == files(written)


def test_other_seed_other_pictures(written: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path / "other", images=2, seed=SEED + 1, size=SIZE)
    for name in ("images/phantom-0000.jpg", "masks/phantom-0000.png"):
        assert (tmp_path / "other" / name).read_bytes() != (written / name).read_bytes()


def test_a_still_does_not_depend_on_how_many_are_asked_for(written: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path / "few", images=3, seed=SEED, size=SIZE)
    few, all_of_them = files(tmp_path / "few"), files(written)
    for index in range(3):
        name = f"images/phantom-{index:04d}.jpg"
        assert few[name] == all_of_them[name]


def test_stills_and_masks_match(written: Path) -> None:
    manifest = json.loads((written / "phantom.json").read_text())["images"]
    images = sorted(path.stem for path in (written / "images").iterdir())
    assert images == sorted(path.stem for path in (written / "masks").iterdir())
    assert images == sorted(manifest) and len(images) == IMAGES
    for name, kind in manifest.items():
        image = cv2.imread(str(written / "images" / f"{name}.jpg"))
        mask = cv2.imread(str(written / "masks" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        assert image.shape == (*SIZE, 3) and mask.shape == SIZE
        assert set(np.unique(mask)) <= {0, 255}
        assert mask.any() == (kind is not None)
    assert set(manifest.values()) == {*KINDS, None}


def test_lists_divide_the_stills(written: Path) -> None:
    train, val = ((written / f"{name}.txt").read_text().split() for name in ("train", "val"))
    assert train and val and not set(train) & set(val)
    assert sorted(train + val) == sorted(path.stem for path in (written / "images").iterdir())


def test_video_has_a_mask_for_every_frame(written: Path) -> None:
    import av

    with av.open(str(written / "video.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.average_rate == 25
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    names = [path.name for path in sorted((written / "video-masks").iterdir())]
    assert names == [f"{index:06d}.png" for index in range(FRAMES)]
    assert len(frames) == FRAMES and frames[0].shape == (*SIZE, 3)
    shown = [mask.any() for mask in masks(written / "video-masks")]
    assert 0 < shown.count(False) < FRAMES / 2
    passages = json.loads((written / "phantom.json").read_text())["passages"]
    assert sum(passage["frames"] for passage in passages) == FRAMES
    assert {passage["kind"] for passage in passages} == {*KINDS, None}


def test_picture_is_lit_tissue(written: Path) -> None:
    """Red leads green leads blue on average, and no picture is black or burnt out."""
    for path in (written / "images").iterdir():
        blue, green, red = cv2.imread(str(path)).reshape(-1, 3).mean(0)
        assert 50 < red < 220
        assert red > green and red > blue


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--frames", "0", "--images", "0"], "0 frames and 0 images"),
        (["--images", "-1"], "-1 images"),
        (["--images", "1", "--size", "32x64"], "32x64"),
        (["--images", "1", "--size", "65x64"], "65x64"),
        (["--images", "1", "--size", "big"], "big"),
        (["--images", "1", "--seed", "-2"], "seed -2"),
    ],
)
def test_wrong_options(tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        cli.main(["phantom", str(tmp_path / "out"), *options])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    for place in ("file", "file/below", "full", "long" * 80):
        with pytest.raises(UserError, match=place) as caught:
            write_phantom(tmp_path / place, images=1, size=(64, 64))
        assert "\n" not in str(caught.value)
    assert files(tmp_path) == {"file": b"mine", "full/thesis.txt": b"mine"}


def test_a_phantom_is_replaced_by_the_next(tmp_path: Path) -> None:
    write_phantom(tmp_path / "out", images=2, seed=0, size=(64, 64))
    write_phantom(tmp_path / "out", images=1, seed=0, size=(64, 64))
    assert len(list((tmp_path / "out" / "images").iterdir())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medisseg.phantom import writer

    saved = []

    def save(path: Path, picture: np.ndarray) -> None:
        saved.append(path)
        if len(saved) == 3:
            raise KeyboardInterrupt
        path.write_bytes(picture.tobytes())

    monkeypatch.setattr(writer, "_save", save)
    with pytest.raises(KeyboardInterrupt):
        write_phantom(tmp_path / "out", images=4, size=(64, 64))
    assert not list(tmp_path.iterdir())


def test_command_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert not cli.main(["phantom", out, "--images", "1", "--frames", "2", "--size", "64"])
    said = capsys.readouterr().out
    assert said.strip() == f"{out}: 1 images with masks and a video of 2 frames with masks"
