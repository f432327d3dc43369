"""``medisseg data``: what is said of a folder, as words, as JSON and as a picture of its masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medisseg.cli import main
from medisseg.colors import PALETTE
from medisseg.data.folder import SegmentationFolder
from medisseg.data.survey import SHEET, contact_sheet, take_survey
from medisseg.errors import UserError

BLOCK = np.zeros((40, 60), np.uint8)
BLOCK[10:30, 6:36] = 1  # 600 of 2400 pixels


def scene(seed: int, size: tuple[int, int] = (60, 40)) -> Image.Image:
    """A smooth random picture, of which no two are alike."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def add(root: Path, name: str, picture: Image.Image, mask: np.ndarray | None = BLOCK) -> None:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    picture.save(root / "images" / name, quality=90)
    if mask is not None:
        resized = Image.fromarray(255 * mask).resize(picture.size, Image.Resampling.NEAREST)
        resized.save(root / "masks" / f"{Path(name).stem}.png")


def lists(root: Path, **parts: str) -> None:
    for part, names in parts.items():
        (root / f"{part}.txt").write_text(names.replace(" ", "\n") + "\n")


def reported(root: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["data", str(root), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_json_holds_what_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in range(3):
        add(tmp_path, f"a{k}.png", scene(k))
    add(tmp_path, "b.jpg", scene(9, (90, 60)), np.zeros_like(BLOCK))
    add(tmp_path, "bare.png", scene(10), None)
    Image.fromarray(255 * BLOCK).save(tmp_path / "masks" / "stranger.png")
    lists(tmp_path, train="a0 a1", val="b")
    assert reported(tmp_path, capsys) == {
        "folder": str(tmp_path),
        "images": 5,
        "unmasked": ["bare"],
        "unusable": {},
        "splits": {
            "train": {"images": 2, "from": "train.txt"},
            "val": {"images": 1, "from": "val.txt"},
        },
        "sizes": {"60x40": 4, "90x60": 1},
        "kinds": {"PNG": 4, "JPEG": 1},
        "mean_foreground": pytest.approx(3 * 0.25 / 5),
        "empty": 2,
        "full": 0,
        "classes": {"0": pytest.approx(0.85), "1": pytest.approx(0.15)},
        "void": 0.0,
        "left_out": {"masks/stranger.png": "a mask whose name is no image's"},
        "notes": ["2 images are in no split"],
        "warnings": [
            "no mask for bare (1 of 5); unmasked=negative says that there is nothing on them, "
            "unmasked=skip skips them"
        ],
    }


def test_one_scene_in_two_splits_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another size and compression are the same picture; within a split it may come again."""
    for k in range(4):
        add(tmp_path, f"a{k}.png", scene(k))
    add(tmp_path, "again.jpg", scene(1).resize((120, 80), Image.Resampling.BICUBIC))
    add(tmp_path, "twin.png", scene(0))
    lists(tmp_path, train="a0 a1 twin", val="a2 a3 again")
    warnings = reported(tmp_path, capsys)["warnings"]
    assert warnings == ["nearly the same picture in two splits: again (val) and a1 (train)"]
    lists(tmp_path, train="a1 again twin", val="a0 a2 a3")
    (warning,) = reported(tmp_path, capsys)["warnings"]
    assert warning == "nearly the same picture in two splits: a0 (val) and twin (train)"
    lists(tmp_path, train="a0 a1 again twin", val="a2 a3")
    assert reported(tmp_path, capsys)["warnings"] == []


def test_the_sheet_shows_masks_on_images(tmp_path: Path) -> None:
    """30 grey images, each of its own tone: 24 of them, evenly chosen, tinted where the mask is."""
    for k in range(30):
        tone = np.full((40, 60, 3), 20 + 7 * k, np.uint8)
        add(tmp_path / "data", f"p{k:02}.png", Image.fromarray(tone))
    assert main(["data", str(tmp_path / "data"), "--sheet", str(tmp_path / "sheet.png")]) == 0
    sheet = np.asarray(Image.open(tmp_path / "sheet.png")).astype(float)
    assert sheet.shape == (4 * 240, 6 * 240, 3) and SHEET == 24
    for place in range(24):
        top, left = place // 6 * 240, place % 6 * 240
        tone = 20 + 7 * (place * 30 // 24)
        tile = sheet[top : top + 40, left : left + 60]
        assert np.all(tile[:10] == tone) and np.all(tile[:, :6] == tone)  # outside of the mask
        tinted = np.rint(tone + 0.35 * (np.array(PALETTE[0]) - tone))
        assert np.abs(tile[20, 20] - tinted).max() <= 1
        assert np.all(tile[10, 20] == PALETTE[0])  # the outline
        assert np.all(sheet[top + 40 : top + 240, left : left + 240] == 255)  # no image


def test_large_images_are_shrunk_onto_the_sheet(tmp_path: Path) -> None:
    add(tmp_path, "a.png", Image.new("RGB", (944, 472), (90, 90, 90)))
    folder = SegmentationFolder(tmp_path)
    sheet = contact_sheet(folder, take_survey(folder))
    assert sheet.shape == (240, 240, 3)
    assert np.all(sheet[5, :236] == 90) and np.all(sheet[120:] == 255)
    assert not np.array_equal(sheet[59, 80], [90, 90, 90])


def test_a_refused_file_is_told_among_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for k in range(3):
        add(tmp_path, f"a{k}.png", scene(k))
    (tmp_path / "images" / "stub.dcm").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "masks" / "stub.png").write_bytes((tmp_path / "masks" / "a0.png").read_bytes())
    found = reported(tmp_path, capsys)
    assert list(found["unusable"]) == ["stub"] and found["kinds"] == {"PNG": 3}
    assert found["warnings"][0].startswith("1 of 4 cannot be used: ")
    assert "stub.dcm is not a readable DICOM image" in found["warnings"][0]
    assert main(["data", str(tmp_path)]) == 0
    assert "warning: 1 of 4 cannot be used" in capsys.readouterr().out


@pytest.mark.parametrize("as_json", [True, False])
def test_a_folder_of_nothing_usable_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "stub.dcm").write_bytes(b"\0" * 128 + b"DICM")
    with pytest.raises(UserError, match=r"nothing of .* can be used: .*stub\.dcm is not a read"):
        main(["data", str(tmp_path), "--sheet", str(tmp_path / "s.png"), *["--json"] * as_json])
    printed = capsys.readouterr().out
    assert (json.loads(printed)["unusable"].keys() == {"stub"}) if as_json else "stub" in printed
    assert not (tmp_path / "s.png").exists()
