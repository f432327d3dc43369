"""Evaluation against masks whose scores are known, and its files and page."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from medisseg.convention import InputConvention
from medisseg.data.folder import Sample, SegmentationFolder
from medisseg.errors import UserError
from medisseg.evaluation import evaluate_command
from medisseg.evaluation.evaluate import evaluate, write_results
from medisseg.evaluation.evaluate_page import distributions, write_page
from medisseg.labels import Label
from medisseg.predictor import Predictor

KEYS = {"miou", "mdsc", "recall", "precision", "hd95", "boundary_iou", "calibration_error"}
SIZE = (64, 64)


class Answers:
    """An engine that finds the pixels whose red is 255 and, for classes, whose value tells it."""

    name, threshold, labels = "answers", 0.5, ()

    def __init__(self, classes: int = 1, resize: str = "stretch") -> None:
        self.classes = classes
        self.convention = InputConvention(mean=(0, 0, 0), std=(1, 1, 1), size=SIZE, resize=resize)

    def infer(self, batch: np.ndarray) -> np.ndarray:
        if self.classes == 1:
            return 40 * (batch[:, :1] - 0.5)
        return np.stack([-np.abs(batch[:, 0] * 255 - 50 * k) for k in range(self.classes)], 1)


def predictor(classes: int = 1, resize: str = "stretch") -> Predictor:
    made = object.__new__(Predictor)
    engine = Answers(classes, resize)
    made.__dict__.update(vars(engine), engine=engine, threshold=0.5, name="answers", labels=())
    return made


def sample(name: str, found: tuple[int, int], true: tuple[int, int], size: int = 64) -> Sample:
    """A picture with red columns ``found`` whose mask has the columns ``true``."""
    image, mask = np.zeros((size, size, 3), np.uint8), np.zeros((size, size), np.uint8)
    image[:, slice(*found), 0] = 255
    mask[:, slice(*true)] = 1
    return Sample(image, mask, name)


SAMPLES = [
    sample("right", (0, 20), (0, 20)),
    sample("half", (0, 20), (0, 40)),
    sample("nothing", (0, 0), (0, 0)),
    sample("wrong", (0, 20), (44, 64)),
]


def test_scores_are_per_image_then_averaged() -> None:
    reported = []
    result = evaluate(predictor(), SAMPLES, batch=3, advance=reported.append)
    summary = result.summary()
    assert reported == [3, 1]
    assert set(summary) == KEYS | {
        "images", "intervals", "native", "detection", "empty_predictions",
    }  # fmt: skip
    assert set(summary["intervals"]) == KEYS and set(summary["native"]) == KEYS | {"intervals"}
    assert summary["images"] == 4
    assert summary["miou"] == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert summary["mdsc"] == pytest.approx((1 + 2 / 3 + 1 + 0) / 4)
    assert summary["recall"] == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert summary["precision"] == pytest.approx((1 + 1 + 1 + 0) / 4)
    # 20 of 64 columns are wrong in "half", 40 in "wrong", each with full confidence.
    assert summary["calibration_error"] == pytest.approx((20 + 40) / 256, abs=1e-6)
    assert result.worst(2) == [3, 1]


def test_empty_predictions_are_counted_and_scored_by_both_rules() -> None:
    """Where there is a lesion and no prediction, precision is 0 here and 1 in the release."""
    summary = evaluate(predictor(), [*SAMPLES, sample("missed", (0, 0), (10, 30))]).summary()
    assert summary["precision"] == pytest.approx((1 + 1 + 1 + 0 + 0) / 5)
    reported = summary["empty_predictions"]
    assert reported == {"images": 1, "precision_as_release": pytest.approx((1 + 1 + 1 + 0 + 1) / 5)}


def test_native_resolution_is_the_images_own() -> None:
    big = [sample("a", (0, 100), (0, 101), size=256)]
    summary = evaluate(predictor(), big).summary()
    assert summary["native"]["miou"] == pytest.approx(100 / 101, abs=0.011)
    assert summary["miou"] == pytest.approx(1.0)  # one column of 256 vanishes at 64


def test_padding_of_a_letterbox_is_not_scored() -> None:
    wide = Sample(np.zeros((32, 64, 3), np.uint8), np.zeros((32, 64), np.uint8), "wide")
    wide.image[:, :32, 0] = 255
    wide.mask[:, :16] = 1
    row = evaluate(predictor(resize="letterbox"), [wide]).rows[0]
    assert row.network.values["iou"] == pytest.approx(0.5)
    assert row.network.table[:, 0].sum() == 32 * 64


def test_several_classes() -> None:
    image, mask = np.zeros((*SIZE, 3), np.uint8), np.zeros(SIZE, np.uint8)
    mask[:, :20], mask[:, 20:40] = 1, 2
    image[:, :20, 0], image[:, 20:30, 0], image[:, 60:, 0] = 50, 100, 150
    result = evaluate(predictor(classes=4), [Sample(image, mask, "a")])
    classes = result.classes()
    assert {k: v["miou"] for k, v in classes.items()} == {"1": 1.0, "2": 0.5, "3": 0.0}
    assert result.summary()["miou"] == pytest.approx(0.5)


def test_intervals_draw_whole_sequences() -> None:
    groups = {"right": "1", "half": "1", "nothing": "1", "wrong": "2"}
    alone, grouped = evaluate(predictor(), SAMPLES), evaluate(predictor(), SAMPLES, groups)
    assert alone.groups() is None
    assert grouped.groups() == ["1", "1", "1", "2"]
    assert grouped.summary()["intervals"]["mdsc"][0] == 0.0  # only sequence 2 was drawn
    assert evaluate(predictor(), SAMPLES, {"right": "1"}).groups() is None


def test_files(tmp_path: Path) -> None:
    result = evaluate(predictor(), SAMPLES)
    write_results(result, {"model": "m"}, tmp_path / "out")
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == result.summary()
    assert json.loads((tmp_path / "out/evaluation.json").read_text())["model"] == "m"
    with open(tmp_path / "out/per_image.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["right", "half", "nothing", "wrong"]
    mean = np.mean([float(row["native_dice"]) for row in rows])
    assert mean == pytest.approx(result.summary()["native"]["mdsc"], abs=1e-6)
    assert float(rows[1]["true_share"]) == pytest.approx(40 / 64)


def test_page_shows_the_worst_first(tmp_path: Path) -> None:
    model = predictor()
    result = evaluate(model, SAMPLES)
    about = dict.fromkeys(("model", "architecture", "data", "split", "size"), "x")
    reported = {**about, "threshold": 0.5}
    write_page(result, reported, lambda one: model(one.image), SAMPLES, 3, tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text()
    captions = [text.index(f"{name}: Dice") for name in ("wrong", "half", "right")]
    assert captions == sorted(captions)
    assert "nothing: Dice" not in text
    assert distributions(result).axes[0].get_xlabel() == "Dice"


def test_named_classes_are_in_the_page_and_the_files(tmp_path: Path) -> None:
    """Columns of 50 and of 100 are the classes 1 and 2; half of the second one is missed."""
    names = (Label("neoplastic", (230, 159, 0)), Label("non-neoplastic", (0, 158, 115)))
    model = predictor(3)
    model.labels = model.engine.labels = names
    image, mask = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    image[:, :16, 0], image[:, 32:40, 0] = 50, 100
    mask[:, :16], mask[:, 32:48] = 1, 2
    samples = [Sample(image, mask, "both")]
    result = evaluate(model, samples)
    assert result.classes()["1"]["mdsc"] == 1
    assert result.classes()["2"]["mdsc"] == pytest.approx(2 / 3)
    metadata = evaluate_command.about(arguments(tmp_path), model)
    write_results(result, metadata, tmp_path)
    told = json.loads((tmp_path / "evaluation.json").read_text())
    assert told["labels"] == [
        {"name": "neoplastic", "color": [230, 159, 0]},
        {"name": "non-neoplastic", "color": [0, 158, 115]},
    ]
    page = tmp_path / "index.html"
    write_page(result, metadata, lambda one: model(one.image), samples, 1, page)
    text = page.read_text()
    for label, dice in zip(names, ("1.000", "0.667"), strict=True):
        key = f'<i class="key" style="background:rgb{label.color}"></i>{label.name}</td>'
        line = text[text.index(key) :].partition("</tr>")[0]
        assert f">{dice}<" in line


def write_folder(root: Path) -> None:
    for item in SAMPLES:
        for kind, pixels in (("images", item.image), ("masks", item.mask * np.uint8(255))):
            (root / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / kind / f"{item.name}.png")
    (root / "val.txt").write_text("\n".join(item.name for item in SAMPLES))


def arguments(root: Path, **changes: object) -> SimpleNamespace:
    import argparse

    parser = argparse.ArgumentParser()
    evaluate_command.add_arguments(parser)
    parsed = parser.parse_args(["model.safetensors", "--data", str(root)])
    return SimpleNamespace(**{**vars(parsed), **changes})


def test_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("medisseg.predictor.Predictor", lambda *_: predictor())
    write_folder(tmp_path / "data")
    out = tmp_path / "out"
    assert evaluate_command.run(arguments(tmp_path / "data", out=out)) == 0  # type: ignore[arg-type]
    shown = capsys.readouterr().out
    assert "mDSC (Dice)" in shown and "0.667" in shown and "4 images" in shown
    assert {p.name for p in out.iterdir()} == {
        "metrics.json",
        "evaluation.json",
        "per_image.csv",
        "index.html",
        "worst.png",
        "froc.png",
    }
    with pytest.raises(UserError, match="--batch"):
        evaluate_command.run(arguments(tmp_path / "data", batch=0))  # type: ignore[arg-type]


def test_negatives_and_corruptions_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("medisseg.predictor.Predictor", lambda *_: predictor())
    write_folder(tmp_path / "data")
    clean = tmp_path / "clean"
    clean.mkdir()
    for name, columns in (("silent", 0), ("speck", 1), ("false", 32)):
        pixels = np.zeros((64, 64, 3), np.uint8)
        pixels[: 1 if name == "speck" else 64, :columns, 0] = 255
        Image.fromarray(pixels).save(clean / f"{name}.png")
    out = tmp_path / "out"
    changes = {"out": out, "negatives": str(clean), "corruptions": True}
    assert evaluate_command.run(arguments(tmp_path / "data", **changes)) == 0  # type: ignore[arg-type]
    reported = json.loads((out / "metrics.json").read_text())
    least = reported["negatives"]["by_least_area"]
    assert least["0.05"]["frames_with_false_region"] == pytest.approx(1 / 3)
    assert reported["negatives"]["mean_false_area"] == pytest.approx(0.5 / 3, abs=0.01)
    assert reported["negatives"]["sensitivity"] is None and reported["detection"]["found"] == 2
    with open(out / "negatives.csv") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    assert rows["false"]["false_regions"] == "1" and rows["silent"]["false_share"] == "0.000000"
    assert float(rows["false"]["false_share"]) == pytest.approx(0.5, abs=0.02)
    with open(out / "corruptions.csv") as file:
        table = {row["corruption"]: row for row in csv.DictReader(file)}
    assert table["clean"]["dice"] == table["rotation 90 degrees"]["dice"] == "0.6667"
    assert float(table["pillar-boxed full HD"]["dice"]) == pytest.approx(2 / 3, abs=0.02)
    assert "| JPEG quality 10 | 4 |" in (out / "corruptions.md").read_text()
    assert "2 of 3" in capsys.readouterr().out
    with pytest.raises(UserError, match="give --out"):
        evaluate_command.run(arguments(tmp_path / "data", corruptions=True))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no folder"):
        evaluate_command.run(arguments(tmp_path / "data", negatives="nowhere"))  # type: ignore[arg-type]


def test_real_masks_against_themselves(polyps: Path) -> None:
    """Masks painted red into their images are found again, at both resolutions."""
    folder = SegmentationFolder(polyps, "val")
    painted = []
    for item in (folder[i] for i in range(4)):
        image = np.zeros_like(item.image)
        image[item.mask > 0, 0] = 255
        painted.append(Sample(image, item.mask, item.name))
    summary = evaluate(predictor(), painted).summary()
    assert summary["native"]["mdsc"] > 0.97 and summary["mdsc"] > 0.95


def test_images_that_were_trained_on_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "train.txt").write_text("a\nb\n")
    inside = str(tmp_path / "stage2" / "best.safetensors")
    for checkpoint in (inside, str(tmp_path / "best.safetensors")):
        evaluate_command.warn_of_training_images(checkpoint, ("a", "c"))
        assert "1 of 2 images are in" in capsys.readouterr().out
    evaluate_command.warn_of_training_images(inside, ("c",))
    evaluate_command.warn_of_training_images("edge-kvasir", ("a",))
    assert not capsys.readouterr().out
