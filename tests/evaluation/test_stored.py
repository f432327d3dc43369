"""Another system's masks, scored as a network is, and systems compared on the same images."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medisseg.cli import main
from medisseg.data.folder import Sample, SegmentationFolder
from medisseg.errors import UserError
from medisseg.evaluation import compare
from medisseg.evaluation.metrics import image_metrics, paired_test
from medisseg.evaluation.stored import StoredMasks

SIZE = (64, 64)


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.fixture(scope="module")
def polyps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of 64 x 64 with a square each, and two systems' masks of them."""
    root = tmp_path_factory.mktemp("stored")
    for index in range(6):
        mask = np.zeros(SIZE, np.uint8)
        mask[8:40, 8 : 20 + 4 * index] = 255
        save(root / "data" / "images" / f"p{index}.png", np.stack([mask // 2 + 40] * 3, 2))
        save(root / "data" / "masks" / f"p{index}.png", mask)
        save(root / "exact" / f"p{index}.png", mask)
        half = mask.copy()
        half[24:] = 0
        save(root / "half" / "deep" / f"p{index}_pred.png", half)
    return root


def samples(root: Path) -> SegmentationFolder:
    return SegmentationFolder(root / "data", "all")


def test_stored_masks_have_the_scores_of_their_pixels(polyps: Path) -> None:
    folder = samples(polyps)
    for name, half in (("exact", False), ("half", True)):
        stored = StoredMasks(polyps / name, size=SIZE)
        stored.check(folder.names)
        reported: list[int] = []
        result = stored.evaluate(folder, advance=reported.append)
        assert len(reported) == 6
        for row, sample in zip(result.rows, folder, strict=True):
            predicted = sample.mask > 0
            if half:
                predicted[24:] = False
            expected = image_metrics(predicted, sample.mask > 0)
            for scores in (row.network, row.native):
                assert scores.values == pytest.approx(expected)


def test_grey_files_are_probabilities_and_other_sizes_are_resized(tmp_path: Path) -> None:
    grey = np.full((32, 32), 100, np.uint8)
    grey[8:24, 8:24] = 200  # 0.78 inside, 0.39 outside
    save(tmp_path / "a.png", grey)
    truth = np.zeros((64, 64), np.uint8)
    truth[16:48, 16:48] = 1
    sample = Sample(np.zeros((64, 64, 3), np.uint8), truth, "a")
    prediction = StoredMasks(tmp_path, size=SIZE).predict(sample)
    assert prediction.probability[32, 32] == pytest.approx(200 / 255, abs=1e-4)
    assert prediction.probability[2, 2] == pytest.approx(100 / 255, abs=1e-4)
    assert np.array_equal(prediction.mask, truth)
    assert StoredMasks(tmp_path, size=SIZE, threshold=0.3).predict(sample).mask.all()


def test_files_of_zero_and_one_are_masks(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.eye(8, dtype=np.uint8))
    save(tmp_path / "b.png", np.zeros((8, 8), np.uint8))
    sample = Sample(np.zeros((8, 8, 3), np.uint8), np.eye(8, dtype=np.uint8), "a")
    assert np.array_equal(StoredMasks(tmp_path).predict(sample).mask, np.eye(8))


def test_classes_are_indices(tmp_path: Path) -> None:
    labels = np.arange(256).reshape(16, 16).astype(np.uint8) % 3
    save(tmp_path / "a.png", labels)
    sample = Sample(np.zeros((16, 16, 3), np.uint8), labels, "a")
    stored = StoredMasks(tmp_path, classes=3, size=(16, 16))
    assert np.array_equal(stored.predict(sample).mask, labels)
    assert stored.evaluate([sample]).summary()["mdsc"] == 1
    with pytest.raises(UserError, match="holds class 2; expected indices 0 to 1"):
        StoredMasks(tmp_path, classes=2).predict(sample)


def test_what_is_wrong_with_a_folder_of_masks(polyps: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder of masks"):
        StoredMasks(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no masks"):
        StoredMasks(tmp_path / "empty")
    with pytest.raises(UserError, match=r"no mask of 1 of 2 images, such as p_1 \(nearest: p1"):
        StoredMasks(polyps / "exact").check(["p0", "p_1"])
    save(tmp_path / "wide" / "p0.png", np.zeros((64, 32), np.uint8))
    with pytest.raises(UserError, match="is 32 x 64, its image 64 x 64"):
        StoredMasks(tmp_path / "wide").predict(samples(polyps)[0])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "p0.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="not a readable mask"):
        StoredMasks(tmp_path / "broken").predict(samples(polyps)[0])


def test_the_table_has_the_paired_test_of_the_images(polyps: Path) -> None:
    folder = samples(polyps)
    systems = []
    for name in ("exact", "half"):
        stored = StoredMasks(polyps / name, size=SIZE)
        systems.append(compare.System(name, stored.evaluate(folder), stored.predict))
    first, second = compare.table(systems)
    assert first["mdsc"] == 1 and "mdsc_test" not in first
    dice = [row.network.values["dice"] for row in systems[1].evaluation.rows]
    assert second["mdsc_test"] == paired_test([1.0] * 6, dice)
    assert second["mdsc_test"]["worse"] == 6 and second["mdsc"] == pytest.approx(2 / 3)
    picture = compare.side_by_side(systems, folder[0])
    assert picture.shape == (64, 4 * 64 + 3 * 4, 3)


def test_compare_from_the_command_line(
    polyps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data", str(polyps / "data"), "--split", "all", "--out", str(tmp_path)]
    code = main(["compare", str(polyps / "exact"), str(polyps / "half"), "edge-kvasir", *given])
    assert code == 0 and "exact" in capsys.readouterr().out
    reported = json.loads((tmp_path / "compare.json").read_text())
    assert [row["system"] for row in reported["systems"]] == ["exact", "half", "edge-kvasir"]
    with open(tmp_path / "per_image.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["exact dice"]) for row in rows] == [1.0] * 6
    assert "Wilcoxon" in (tmp_path / "index.html").read_text()
    with Image.open(tmp_path / "side_by_side.png") as picture:
        assert picture.width == 5 * 64 + 4 * 4
    with pytest.raises(UserError, match="expected at least two"):
        main(["compare", str(polyps / "exact"), *given])
    with pytest.raises(UserError, match="named twice"):
        main(["compare", str(polyps / "exact"), str(polyps / "exact"), *given])


def test_evaluate_scores_a_folder_of_masks(polyps: Path, tmp_path: Path) -> None:
    given = ["--data", str(polyps / "data"), "--split", "all", "--size", "64x64"]
    out = ["--out", str(tmp_path)]
    assert main(["evaluate", "--predictions", str(polyps / "half"), *given, *out]) == 0
    reported = json.loads((tmp_path / "metrics.json").read_text())
    assert reported["mdsc"] == pytest.approx(2 / 3) and reported["precision"] == 1
    assert (tmp_path / "index.html").is_file() and (tmp_path / "worst.png").is_file()
    for wrong, message in (
        (["edge-kvasir", "--predictions", str(polyps / "half")], "does not go with edge-kvasir"),
        ([], "nothing to evaluate"),
        (["--predictions", str(polyps / "half"), "--size", "60x64"], "multiples of 16"),
        (["--predictions", str(polyps / "half"), "--size", "big"], "expected such as 352x352"),
    ):
        with pytest.raises(UserError, match=message):
            main(["evaluate", *given, *wrong])


def test_folders_tell_files_of_one_name_apart(tmp_path: Path) -> None:
    one, two = np.zeros((16, 16), np.uint8), np.full((16, 16), 255, np.uint8)
    save(tmp_path / "train" / "masks" / "7_pred.png", one)
    save(tmp_path / "test" / "masks" / "7_pred.png", two)
    stored = StoredMasks(tmp_path, size=(16, 16))
    stored.check(["train/7", "test/7"])
    for name, mask in (("train/7", one), ("test/7", two)):
        sample = Sample(np.zeros((16, 16, 3), np.uint8), mask, name)
        assert np.array_equal(stored.predict(sample).mask, mask // 255)
    with pytest.raises(UserError, match=r"2 masks of 7: test.masks.7_pred\.png and train.masks"):
        stored.check(["7"])


def test_two_files_of_an_image_and_two_images_of_a_file(tmp_path: Path) -> None:
    grey = np.full((16, 16), 255, np.uint8)
    save(tmp_path / "p0_mask.png", grey)
    save(tmp_path / "p0_prob.png", grey // 2)
    with pytest.raises(UserError, match=r"2 masks of p0: p0_mask\.png and p0_prob\.png"):
        StoredMasks(tmp_path).check(["p0"])
    save(tmp_path / "p0.png", grey)  # the very name goes before
    stored = StoredMasks(tmp_path, size=(16, 16))
    stored.check(["p0"])
    assert stored.predict(Sample(np.zeros((16, 16, 3), np.uint8), grey, "p0")).mask.all()
    with pytest.raises(UserError, match=r"p0\.png would be the mask of a/p0 and of b/p0"):
        stored.check(["a/p0", "b/p0"])


def test_wrong_numbers_of_evaluate_and_compare(polyps: Path) -> None:
    data = ["--data", str(polyps / "data"), "--split", "all"]
    both = [str(polyps / "exact"), str(polyps / "half")]
    theirs = ["evaluate", "--predictions", both[0], *data]
    for command, message in (
        ([*theirs, "--threshold", "0"], r"threshold is 0\.0; expected a probability within"),
        ([*theirs, "--threshold", "1"], r"threshold is 1\.0; expected a probability within"),
        ([*theirs, "--threshold", "2"], r"threshold is 2\.0; expected a probability within"),
        ([*theirs, "--class-names", "a,b"], "class_names has 2 entries for 1 classes"),
        (["compare", *both, *data, "--out", "c", "--cases", "0"], "--cases is 0; expected 1"),
        (["compare", *both, *data, "--out", "c", "--batch", "0"], "--batch is 0; expected 1"),
        (["compare", *both, *data, "--out", "c", "--batch", "-1"], "--batch is -1; expected 1"),
    ):
        with pytest.raises(UserError, match=message):
            main(command)


def test_class_names_of_stored_masks_reach_page_and_results(tmp_path: Path, capsys) -> None:
    labels = np.arange(256).reshape(16, 16).astype(np.uint8) % 3
    save(tmp_path / "data" / "images" / "a.png", np.stack([labels * 80] * 3, 2))
    save(tmp_path / "data" / "masks" / "a.png", labels)
    save(tmp_path / "theirs" / "a.png", labels)
    command = ["evaluate", "--predictions", str(tmp_path / "theirs"), "--data",
               str(tmp_path / "data"), "--split", "all", "--classes", "3", "--size", "16x16",
               "--class-names", "benign, malign", "--out", str(tmp_path / "out")]  # fmt: skip
    assert main(command) == 0
    shown = capsys.readouterr().out
    for name in ("benign", "malign"):
        (line,) = [line for line in shown.splitlines() if f"■ {name}" in line]
        assert line.count("1.0000") >= 2  # Dice and IoU of a class that is right
    told = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [row["name"] for row in told["classes"].values()] == ["benign", "malign"]
    page = (tmp_path / "out" / "index.html").read_text()
    assert "benign" in page and "malign" in page


def test_systems_of_other_sizes_are_compared_at_the_images_own(polyps: Path) -> None:
    """At 32 x 32 and at 64 x 64: the scores and tests are those of the stored pixels."""
    folder = samples(polyps)
    systems = []
    for name, size in (("exact", (32, 32)), ("half", SIZE)):
        stored = StoredMasks(polyps / name, size=size)
        systems.append(compare.System(name, stored.evaluate(folder), stored.predict, native=True))
    native = [row.native.values["dice"] for row in systems[1].evaluation.rows]
    assert systems[1].values("dice") == native == pytest.approx([2 / 3] * 6)


def test_compare_says_its_resolution_and_groups(
    polyps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(polyps / "data", tmp_path / "data")
    lines = [f"p{index},{'abc'[index // 2]}" for index in range(6)]
    (tmp_path / "data" / "groups.csv").write_text("name,group\n" + "\n".join(lines) + "\n")
    both = [str(polyps / "exact"), str(polyps / "half")]
    data = ["--data", str(tmp_path / "data"), "--split", "all"]
    assert main(["compare", *both, *data, "--out", str(tmp_path / "c")]) == 0
    told = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert told["resolution"] == "256 x 256" and told["groups"] == 3
    assert told["systems"][1]["mdsc_test"]["p_value"] == 0.25  # of three sequences, all worse
    assert "3 sequences or patients" in " ".join(capsys.readouterr().out.split())


def test_compare_refuses_slices_of_volumes(tmp_path: Path) -> None:
    volume = np.zeros((4, 16, 16), np.float32)
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "case1.npz", image=volume, label=volume.astype(np.uint8))
    for name in ("one", "two"):
        save(tmp_path / name / "case1_slice000.png", np.zeros((16, 16), np.uint8))
    with pytest.raises(UserError, match="slices of volumes, which are scored by case"):
        main(["compare", str(tmp_path / "one"), str(tmp_path / "two"), "--data",
              str(tmp_path / "data"), "--split", "all", "--out", str(tmp_path / "c")])  # fmt: skip
