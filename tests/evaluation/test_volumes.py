"""Volumes are scored whole, in 3D and millimetres, as the field does."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance

from medisseg.cli import main
from medisseg.config import load_config
from medisseg.convention import InputConvention
from medisseg.data.folder import SegmentationFolder
from medisseg.errors import UserError
from medisseg.evaluation.evaluate import evaluate
from medisseg.evaluation.volumes import find_volumes, hd95, summarize, volume_metrics
from medisseg.predictor import Predictor
from medisseg.training.batches import Arrays, mixing, read_data
from medisseg.training.modules import dice_and_iou, image_scores, overlaps


def blobs(seed: int, classes: int = 3) -> np.ndarray:
    """Labels of a few balls, away from the border, [16, 48, 48]."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, (16, 48, 48)), indexing="ij"), 3)
    labels = np.zeros((16, 48, 48), np.uint8)
    for index in range(1, classes):
        centre = 7 + index, 12 + 8 * index, 14 + 8 * index
        centre = np.add(centre, rng.integers(-2, 3, 3))
        labels[((grid - centre) ** 2).sum(3) < rng.integers(9, 25)] = index
    return labels


@pytest.mark.parametrize("spacing", [None, (3.0, 0.7, 0.9)])
def test_dice_and_hd95_are_monais(spacing: tuple[float, float, float] | None) -> None:
    for seed in range(3):
        pred, true = blobs(seed), blobs(seed + 10)
        found = volume_metrics(pred, true, 3, spacing)
        assert set(found) == {1, 2}
        for index, values in found.items():
            one, two = (torch.from_numpy(v == index)[None, None].float() for v in (pred, true))
            dice = compute_dice(one, two, include_background=True).item()
            distance = compute_hausdorff_distance(
                one, two, include_background=True, percentile=95, spacing=spacing
            ).item()
            assert values["dice"] == pytest.approx(dice, abs=1e-6)
            assert values["hd95"] == pytest.approx(distance, rel=1e-5)


def test_a_stray_pixel_a_slice_costs_a_volume_little() -> None:
    true = np.zeros((4, 20, 20), np.uint8)
    true[0, 2:14, 2:14] = 1
    pred = true.copy()
    pred[1:, 17, 17] = 1  # three slices without the organ, a pixel in each
    assert volume_metrics(pred, true, 2)[1]["dice"] == pytest.approx(288 / 291)
    per_slice = [
        volume_metrics(p[None], t[None], 2)[1]["dice"] for p, t in zip(pred, true, strict=True)
    ]
    assert np.mean(per_slice) == 0.25


def test_absent_classes_are_left_out_and_missed_ones_count() -> None:
    true = np.zeros((2, 8, 8), np.uint8)
    true[:, 2:5, 2:5] = 2
    found = volume_metrics(np.zeros_like(true), true, 4)
    assert set(found) == {2} and found[2]["dice"] == 0 and math.isnan(found[2]["hd95"])
    assert math.isnan(hd95(true > 0, true > 9))
    exact = volume_metrics(true, true, 4)
    reported = summarize({"a": found, "b": exact}, ["background", "liver", "spleen"])
    assert reported == {
        "volumes": 2, "mdsc": 0.5, "hd95": 0.0,
        "classes": {"spleen": {"volumes": 2, "dice": 0.5, "hd95": 0.0}},
    }  # fmt: skip


def test_validation_adds_up_the_slices_of_a_case() -> None:
    names = [f"volumes/case{case}_slice{k:03}" for case in (5, 7) for k in range(8)]
    arrays = Arrays(torch.zeros(16, 3, 8, 8), torch.zeros(16, 8, 8), names)
    assert arrays.cases == (0,) * 8 + (1,) * 8
    assert Arrays(arrays.images, arrays.masks, ["plain", *names[1:]]).cases is None
    pred, true = blobs(0), blobs(1)
    logits = torch.nn.functional.one_hot(torch.from_numpy(pred).long(), 3).permute(0, 3, 1, 2)
    found = overlaps(logits.float(), torch.from_numpy(true).long())
    whole, _ = dice_and_iou(found.sum(0, keepdim=True))
    expected = volume_metrics(pred, true, 3)
    assert whole.item() == pytest.approx(np.mean([v["dice"] for v in expected.values()]))
    by_slice = image_scores(logits.float(), torch.from_numpy(true).long())[:, 1].mean()
    assert abs(by_slice - whole.item()) > 0.05


def test_volumes_must_be_alike() -> None:
    with pytest.raises(ValueError, match="expected two"):
        volume_metrics(np.zeros((2, 3, 4), int), np.zeros((2, 3, 5), int), 2)


NAMES = ["liver", "spleen"]
SPACING = (3.0, 0.7, 0.9)


class Reader:
    """An engine whose classes are the grey values 0, 50 and 100 of the middle slice."""

    name, threshold, classes, labels = "reader", 0.5, 3, ()
    convention = InputConvention(mean=(0, 0, 0), std=(1, 1, 1), size=(48, 48))

    def infer(self, batch: np.ndarray) -> np.ndarray:
        return np.stack([-np.abs(batch[:, 1] * 255 - 50 * k) for k in range(3)], 1)


def predictor() -> Predictor:
    made = object.__new__(Predictor)
    engine = Reader()
    made.__dict__.update(engine=engine, convention=engine.convention, threshold=0.5, classes=3)
    made.__dict__.update(name="reader", labels=())
    return made


def hounsfield(pred: np.ndarray) -> np.ndarray:
    """Values that the window of volumes turns into 0, 50 and 100, so that Reader finds them."""
    return (-125 + 400 * 50 / 255 * pred).astype(np.float32)


def nifti(path: Path, slices: np.ndarray) -> None:
    """Write slices [D, H, W] as a file whose last axis is across them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*SPACING[::-1], 1])
    nibabel.save(nibabel.Nifti1Image(slices.transpose(2, 1, 0).astype(np.float32), affine), path)


def write_set(root: Path, kind: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write two volumes whose images say what Reader will predict; return both by case."""
    volumes = {f"case{k}": (blobs(k), blobs(k + 10)) for k in range(2)}
    for case, (pred, true) in volumes.items():
        if kind == "nifti":
            nifti(root / "imagesTs" / f"{case}_0000.nii.gz", hounsfield(pred))
            nifti(root / "labelsTs" / f"{case}.nii.gz", true)
            continue
        root.mkdir(exist_ok=True)
        told = {"spacing": np.array(SPACING)} if kind == "npz with spacing" else {}
        np.savez(root / f"{case}.npz", image=hounsfield(pred), label=true, **told)
    return volumes


def monais(
    volumes: dict[str, tuple[np.ndarray, np.ndarray]], spacing: tuple[float, ...] | None
) -> dict[str, tuple[float, float]]:
    """Return Dice and HD95 of each class, means over the volumes, by MONAI's own metrics."""
    pairs = [
        [torch.nn.functional.one_hot(torch.from_numpy(v).long(), 3).permute(3, 0, 1, 2)[None]
         for v in pair]
        for pair in volumes.values()
    ]  # fmt: skip
    dice = torch.cat([compute_dice(*pair, include_background=False) for pair in pairs]).mean(0)
    distance = torch.cat([
        compute_hausdorff_distance(*pair, include_background=False, percentile=95, spacing=spacing)
        for pair in pairs
    ]).mean(0)  # fmt: skip
    return {n: (dice[k].item(), distance[k].item()) for k, n in enumerate(NAMES)}


@pytest.mark.parametrize(
    ("kind", "given", "unit"),
    [("nifti", None, "mm"), ("npz", None, "voxels"), ("npz", "3,.7,.9", "mm"),
     ("npz with spacing", None, "mm")],
)  # fmt: skip
def test_evaluation_scores_whole_volumes(
    tmp_path: Path, kind: str, given: str | None, unit: str
) -> None:
    expected = monais(write_set(tmp_path / "data", kind), SPACING if unit == "mm" else None)
    folder = SegmentationFolder(tmp_path / "data", classes=3)
    volumes = find_volumes(folder, 3, given, NAMES)
    summary = evaluate(predictor(), folder, batch=5, volumes=volumes).summary()["volumes"]
    assert summary["unit"] == unit and summary["volumes"] == 2 and not volumes.waiting
    for name, (dice, distance) in expected.items():
        assert summary["classes"][name]["dice"] == pytest.approx(dice, abs=1e-6)
        assert summary["classes"][name]["hd95"] == pytest.approx(distance, rel=1e-5)
    assert summary["mdsc"] == pytest.approx(np.mean([dice for dice, _ in expected.values()]))
    assert summary["hd95"] == pytest.approx(np.mean([far for _, far in expected.values()]))


def test_volumes_of_another_system_from_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """NIfTI files as nnU-Net writes them: the command's files say what MONAI says."""
    volumes = write_set(tmp_path / "data", "nifti")
    for case, (pred, _) in volumes.items():
        nifti(tmp_path / "theirs" / f"{case}.nii.gz", pred)
    command = ["evaluate", "--predictions", str(tmp_path / "theirs"), "--data",
               str(tmp_path / "data"), "--split", "all", "--classes", "3", "--size", "64x64",
               "--class-names", "liver, spleen", "--out", str(tmp_path / "out")]  # fmt: skip
    assert main(command) == 0
    printed = capsys.readouterr().out
    told = json.loads((tmp_path / "out" / "metrics.json").read_text())["volumes"]
    expected = monais(volumes, SPACING)
    for name, (dice, distance) in expected.items():
        assert told["classes"][name]["dice"] == pytest.approx(dice, abs=1e-6)
        assert f"{dice:.4f}" in printed and f"{distance:.2f}" in printed and name in printed
    rows = list(csv.DictReader((tmp_path / "out" / "per_volume.csv").read_text().splitlines()))
    assert [(row["volume"], row["class"]) for row in rows] == [
        (case, name) for case in volumes for name in NAMES
    ]
    assert np.mean([float(r["hd95_mm"]) for r in rows]) == pytest.approx(told["hd95"], rel=1e-5)
    assert "Whole volumes" in (tmp_path / "out" / "index.html").read_text()
    nifti(tmp_path / "theirs" / "case1.nii.gz", volumes["case1"][0][:7])
    with pytest.raises(UserError, match=r"case1\.nii\.gz has 7 slices, but case1_slice007 is one"):
        main(command)
    (tmp_path / "theirs" / "case1.nii.gz").unlink()
    with pytest.raises(UserError, match="no mask of 16 of 32 images, such as case1_slice000"):
        main(command)


@pytest.mark.parametrize("spacing", ["3", "a,b,c", "1,0,1", "1,1,-2", "nan,1,1"])
def test_a_spacing_that_is_none(tmp_path: Path, spacing: str) -> None:
    write_set(tmp_path / "data", "npz")
    with pytest.raises(UserError, match="expected millimetres of slices, rows and columns"):
        find_volumes(SegmentationFolder(tmp_path / "data", classes=3), 3, spacing)


def test_some_volumes_with_a_spacing_and_some_without(tmp_path: Path) -> None:
    write_set(tmp_path / "data", "npz with spacing")
    np.savez(tmp_path / "data" / "other.npz", image=hounsfield(blobs(3)), label=blobs(4))
    folder = SegmentationFolder(tmp_path / "data", classes=3)
    with pytest.raises(UserError, match="other says no spacing, but others do"):
        find_volumes(folder, 3, None)
    assert find_volumes(folder, 3, "1,1,1").unit == "mm"


def test_augmentation_that_slices_do_not_bear_is_said(tmp_path: Path) -> None:
    write_set(tmp_path / "data", "npz")
    given = [f"data={tmp_path / 'data'}", "classes=3", "labels=classes", "split.train=null",
             "split.validation=null", "split.held_out=[]", "input.size=[64,64]"]  # fmt: skip
    (warning,) = read_data(load_config("edge", [*given, "stages=[2]"])).warnings
    assert warning.endswith(
        "set to 0 as synapse.yaml does: stage2.augment.flip_horizontal_p, "
        "stage2.augment.flip_vertical_p, stage2.augment.color.jitter, stage2.augment.color.gray_p"
    )
    assert "second_view.jitter, second_view.gray_p" in mixing(load_config("edge"))[0]
    assert read_data(load_config("synapse", given)).warnings == ()
