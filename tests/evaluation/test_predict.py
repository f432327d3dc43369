"""``medisseg predict``: which images, which files, and nothing half-written."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medisseg.convention import InputConvention
from medisseg.errors import UserError
from medisseg.evaluation import predict_command
from medisseg.evaluation.predict import find_jobs, mask_picture, predict
from medisseg.labels import make_labels
from medisseg.predictor import Predictor


class Engine:
    name, threshold = "red", 0.5
    convention = InputConvention(mean=(0, 0, 0), std=(1, 1, 1), size=(64, 64))

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def infer(self, batch: np.ndarray) -> np.ndarray:
        red = 40 * (batch[:, :1] - 0.5)
        return red if self.classes == 1 else np.concatenate([-red, red, red - 80], 1)


def red_predictor(classes: int = 1) -> Predictor:
    made = object.__new__(Predictor)
    engine = Engine(classes)
    made.__dict__.update(
        engine=engine,
        convention=engine.convention,
        classes=classes,
        threshold=0.5,
        name="red",
        labels=make_labels(classes),
    )
    return made


def write_image(path: Path, size: tuple[int, int] = (80, 120)) -> np.ndarray:
    """Write a picture whose left half is red; return its true mask."""
    image = np.zeros((*size, 3), np.uint8)
    image[:, : size[1] // 2, 0] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return image[..., 0]


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    predict_command.add_arguments(parser)
    return parser.parse_args(["model", *words])


@pytest.fixture
def with_red(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medisseg.predictor.Predictor", lambda *_: red_predictor())


@pytest.mark.usefixtures("with_red")
def test_folders_globs_and_single_images(tmp_path: Path) -> None:
    truth = write_image(tmp_path / "in/a.png")
    write_image(tmp_path / "in/deep/b.tif", (33, 41))
    write_image(tmp_path / "other/c.bmp", (300, 200))
    (tmp_path / "in/notes.txt").write_text("no image")
    out = tmp_path / "out"
    words = [str(tmp_path / "in"), str(tmp_path / "oth*/*.bmp"), "--out", str(out)]
    assert predict_command.run(arguments(*words, "--overlay", "--probabilities")) == 0
    written = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    names = ("a", "deep/b", "c")
    assert written == (
        {f"masks/{n}.png" for n in names}
        | {f"overlays/{n}.jpg" for n in names}
        | {f"probabilities/{n}.png" for n in names}
        | {"predictions.csv"}
    )
    mask = np.asarray(Image.open(out / "masks/a.png"))
    assert mask.dtype == np.uint8 and np.array_equal(mask, truth)
    assert Image.open(out / "masks/deep/b.png").size == (41, 33)
    probability = np.asarray(Image.open(out / "probabilities/a.png"))
    assert probability.dtype == np.uint16 and probability[0, 0] == 65535 and probability[0, -1] == 0
    with open(out / "predictions.csv") as file:
        rows = {row["mask"]: row for row in csv.DictReader(file)}
    assert rows["masks/a.png"]["share"] == "0.500000"
    assert (rows["masks/c.png"]["height"], rows["masks/c.png"]["width"]) == ("300", "200")


@pytest.mark.usefixtures("with_red")
def test_odd_images_are_read(tmp_path: Path) -> None:
    truth = write_image(tmp_path / "plain.png")
    rgb = np.stack([truth, truth * 0, truth * 0], 2)
    Image.fromarray(np.dstack([rgb, np.full_like(truth, 255)])).save(tmp_path / "alpha.png")
    Image.fromarray(rgb).quantize(2).save(tmp_path / "palette.png")
    Image.fromarray(truth.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(truth).save(tmp_path / "grey.tif")
    out = tmp_path / "out"
    files = [str(tmp_path / n) for n in ("alpha.png", "palette.png", "deep.png", "grey.tif")]
    assert predict_command.run(arguments(*files, "--out", str(out))) == 0
    for name in ("alpha", "palette", "deep", "grey"):
        assert np.array_equal(np.asarray(Image.open(out / f"masks/{name}.png")), truth), name


@pytest.mark.usefixtures("with_red")
def test_a_broken_image_is_named_and_the_others_are_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "in/a.png")
    (tmp_path / "in/b.png").write_bytes(b"no picture")
    write_image(tmp_path / "in/c.png")
    out = tmp_path / "out"
    words = [str(tmp_path / "in"), "--out", str(out), "--overlay"]
    assert predict_command.run(arguments(*words)) == 2
    shown = capsys.readouterr()
    assert "2 of 3 images" in shown.out and "b.png" in shown.err
    assert sorted(p.name for p in (out / "masks").iterdir()) == ["a.png", "c.png"]
    assert "b.png" in (out / "predictions.csv").read_text()


@pytest.mark.usefixtures("with_red")
def test_the_longest_names_are_written(tmp_path: Path) -> None:
    name = "ü" * 125  # 250 of the 255 bytes that a name may have, with its suffix 254
    truth = write_image(tmp_path / "in" / f"{name}.png")
    out = tmp_path / "out"
    assert predict_command.run(arguments(str(tmp_path / "in"), "--out", str(out))) == 0
    assert np.array_equal(np.asarray(Image.open(out / f"masks/{name}.png")), truth)


def test_masks_of_a_data_folder_are_not_segmented(tmp_path: Path) -> None:
    write_image(tmp_path / "data/images/deep/a.png")
    write_image(tmp_path / "data/masks/a.png")
    jobs = find_jobs([str(tmp_path / "data")], tmp_path / "out")
    assert [job.name.as_posix() for job in jobs] == ["deep/a"]


def test_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "in/a.png")
    jobs = find_jobs([str(tmp_path / "in")], tmp_path / "out")

    def fail(self: Image.Image, path: Path, *_: object, **__: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        predict(red_predictor(), jobs, tmp_path / "out")
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == []


def test_wrong_inputs(tmp_path: Path) -> None:
    write_image(tmp_path / "one/a.png")
    write_image(tmp_path / "two/a.jpg")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    for inputs, message in (
        (["nowhere.png"], "does not exist"),
        ([str(tmp_path / "empty")], "no images in"),
        ([str(tmp_path / "*.xyz")], "no images in"),
        ([str(tmp_path / "one"), str(tmp_path / "two")], "both be written"),
    ):
        with pytest.raises(UserError, match=message):
            find_jobs(inputs, out)
    one = str(tmp_path / "one/a.png")
    assert len(find_jobs([one, one, str(tmp_path / "one")], out)) == 1
    write_image(tmp_path / "masks/a.png")
    with pytest.raises(UserError, match="replaced"):
        find_jobs([str(tmp_path / "masks")], tmp_path)


def test_class_masks_keep_their_indices() -> None:
    mask = np.array([[0, 1, 2]], np.uint8)
    picture = mask_picture(mask, 3)
    assert picture.mode == "P" and np.array_equal(np.asarray(picture), mask)
    assert np.asarray(picture.convert("RGB"))[0, 0].tolist() == [0, 0, 0]
    assert np.array_equal(np.asarray(mask_picture(mask[:, :2], 1)), mask[:, :2] * 255)


def test_several_classes_write_one_probability_map_each(tmp_path: Path) -> None:
    truth = write_image(tmp_path / "a.png")
    jobs = find_jobs([str(tmp_path / "a.png")], tmp_path / "out")
    predict(red_predictor(3), jobs, tmp_path / "out", probabilities=True)
    maps = [np.asarray(Image.open(tmp_path / f"out/probabilities/a-{k}.png")) for k in range(3)]
    assert maps[1][0, 0] == 65535 and maps[0][0, -1] == 65535 and not maps[2].any()
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/masks/a.png")), truth > 0)
