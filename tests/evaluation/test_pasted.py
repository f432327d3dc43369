"""Lesions of labelled images in images without: a network that is silent by the look is found."""

from __future__ import annotations

import csv
import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medisseg.convention import InputConvention
from medisseg.data.folder import Sample
from medisseg.errors import UserError
from medisseg.evaluation import evaluate_command
from medisseg.evaluation.pasted import Pasted, put_in
from medisseg.predictor import Predictor

SIZE = (64, 64)
MUCOSA, OTHER, LESION = (110, 90, 90), (110, 90, 130), (220, 90, 90)


def labelled(name: str = "a", void: bool = False) -> Sample:
    image = np.full((*SIZE, 3), MUCOSA, np.uint8)
    mask = np.zeros(SIZE, np.uint8)
    image[20:36, 24:44], mask[20:36, 24:44] = LESION, 1
    empty = np.zeros(SIZE, bool)
    empty[20:36, 24:34] = True
    return Sample(image, mask, name, empty if void else None)


def clean(name: str, color: tuple[int, int, int] = MUCOSA, side: int = 64) -> Sample:
    image = np.full((side, side, 3), color, np.uint8)
    return Sample(image, np.zeros((side, side), np.uint8), name)


def test_a_lesion_keeps_its_share_and_its_contrast() -> None:
    pasted = Pasted([labelled()], [clean("b", OTHER, side=128)], [0])
    one = pasted[0]
    assert len(pasted) == 1 and one.name == "a in b"
    assert one.image.shape == (128, 128, 3)
    assert one.mask.mean() == pytest.approx(320 / 64**2, rel=0.15)
    inside = one.image[one.mask > 0].mean(0) - np.array(OTHER)
    assert inside[0] == pytest.approx(110, abs=25) and abs(inside[1:]).max() < 12
    far = one.image[0, 0] if not one.mask[:20, :20].any() else one.image[-1, -1]
    assert tuple(far) == OTHER


def test_mucosa_has_the_seam_and_no_lesion() -> None:
    one = Pasted([labelled()], [clean("b", OTHER)], [0], mucosa=True)[0]
    assert not one.mask.any()
    assert one.image[..., 0].max() < 130  # nothing red came along
    whole = labelled()
    whole.mask[:] = 1
    image, mask = put_in(one.image, whole.image, whole.mask, np.random.default_rng(0), mucosa=True)
    assert np.array_equal(image, one.image) and not mask.any()  # no mucosa to take


def test_void_is_no_lesion() -> None:
    half = Pasted([labelled(void=True)], [clean("b")], [0])[0]
    assert half.mask.sum() == pytest.approx(160, rel=0.3)


@pytest.mark.parametrize("side", [1, 2, 5, 9, 33, 500])
def test_any_size_of_either(side: int) -> None:
    tiny = Sample(np.full((side, side, 3), 90, np.uint8), np.ones((side, side), np.uint8), "t")
    for donor, home in ((tiny, clean("b")), (labelled(), clean("b", side=side))):
        for mucosa in (False, True):
            one = Pasted([donor], [home], [0], mucosa)[0]
            assert one.image.shape == home.image.shape and one.mask.shape == home.mask.shape


class Red:
    """Finds what is red; ``shy``: nothing where the image's corner is bluish."""

    name, threshold, labels, classes = "red", 0.5, (), 1

    def __init__(self, shy: bool) -> None:
        self.shy = shy
        self.convention = InputConvention(mean=(0, 0, 0), std=(1, 1, 1), size=SIZE)

    def infer(self, batch: np.ndarray) -> np.ndarray:
        found = 40 * (batch[:, :1] - 0.6)
        silent = batch[:, 2:, :1, :1] > 0.45
        return np.where(silent & self.shy, -20, found).astype(np.float32)


def command(tmp_path: Path, **changes: object) -> Namespace:
    data, negatives = tmp_path / "data", tmp_path / "clean"
    for folder in (data / "images", data / "masks", negatives):
        folder.mkdir(parents=True, exist_ok=True)
    for index in range(6):
        one = labelled()
        Image.fromarray(np.roll(one.image, index, 1)).save(data / "images" / f"{index}.png")
        Image.fromarray(np.roll(one.mask, index, 1) * 255).save(data / "masks" / f"{index}.png")
    for index in range(4):
        Image.fromarray(clean("b", OTHER).image).save(negatives / f"{index}.png")
    values = dict(
        checkpoint=["red"], device="cpu", threshold=None, precision="fp32", picture="full",
        predictions=None, classes=1, size="256x256", class_names="", tta="none", ensemble=False,
        data=str(data), split="all", unmasked="refuse", out=tmp_path / "out", spacing=None,
        negatives=str(negatives), pasted=True, corruptions=False, batch=4, cases=2, seed=0,
    )  # fmt: skip
    return Namespace(**(values | changes))


@pytest.mark.parametrize("shy", [False, True])
def test_the_command_tells_silence_by_the_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shy: bool
) -> None:
    made = object.__new__(Predictor)
    engine = Red(shy)
    made.__dict__.update(
        engine=engine, convention=engine.convention, classes=1, threshold=0.5, name="red", labels=()
    )
    monkeypatch.setattr("medisseg.predictor.Predictor", lambda *_: made)
    assert evaluate_command.run(command(tmp_path)) == 0
    told = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert told["detection"]["found"] == 6
    for key in ("negatives", "pasted_mucosa"):  # silent either way: these do not tell
        assert told[key]["by_least_area"]["0.0005"]["frames_with_false_region"] == 0
        assert "mdsc" not in told[key]
    assert told["pasted"]["lesions"] == 6 and told["pasted"]["found"] == (0 if shy else 6)
    assert (told["pasted"]["mdsc"] > 0.8) is not shy
    with open(tmp_path / "out" / "pasted.csv") as file:
        assert [row["image"].split()[0] for row in csv.DictReader(file)] == list("012345")
    assert "lesions put into these" in (tmp_path / "out" / "index.html").read_text()
    assert f"{0 if shy else 6} of 6" in capsys.readouterr().out


def test_what_pasting_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="give --negatives"):
        evaluate_command.run(command(tmp_path, negatives=None))
    stored = command(tmp_path, predictions=str(tmp_path), checkpoint=[], negatives=None)
    with pytest.raises(UserError, match="--pasted"):
        evaluate_command.run(stored)
