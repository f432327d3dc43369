"""Cross-validation, parts of a batch, and data that is too small for batch normalisation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medisseg.config import TrainConfig, load_config
from medisseg.data.folder import SegmentationFolder
from medisseg.errors import UserError
from medisseg.training.batches import folder_names, read_data
from medisseg.training.run import train

TINY = [
    "input.size=[64,64]",
    "options={width: 8, heads: 2, decouple_width: 8, aux_widths: [8, 8, 8, 8], head_width: 8}",
    "encoder_weights=null", "epochs=1", "hardware.threads=1", "hardware.progress=false",
    "split={train: null, validation: null, held_out: [], fraction: 0.3}",
]  # fmt: skip


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    """Six images with a disc each, which a ring of void surrounds."""
    root = tmp_path / "blobs"
    rows, columns = np.mgrid[:64, :64]
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for index in range(6):
        apart = (rows - 24 - 2 * index) ** 2 + (columns - 30) ** 2
        mask = np.where(apart < 100, 1, np.where(apart < 196, 255, 0)).astype(np.uint8)
        image = (60 + 120 * (mask == 1)[..., None] * np.ones(3)).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"{index}.png")
        Image.fromarray(mask).save(root / "masks" / f"{index}.png")
    return root


def tiny(blobs: Path, *more: str) -> TrainConfig:
    return load_config("edge", [*TINY, f"data={blobs}", f"out={blobs.parent / 'run'}", *more])


def test_a_batch_in_parts_with_void_trains(blobs: Path) -> None:
    config = tiny(blobs, "batch=4", "accumulate=2", "loss.mask=focal_dice", "stages=[2]")
    data = read_data(config)
    assert sorted(np.unique(data.train.masks)) == [0, 1, 255]
    assert "255 beside 1 is void" in " ".join(data.notes)
    assert "train: mean foreground 7." in " ".join(data.notes)
    out = train(config, data).parent
    summary = json.loads((out / "stage2/summary.json").read_text())
    assert summary["epochs"] == 1 and np.isfinite(summary["best"]["train_loss"])


def test_one_image_a_step_is_refused_in_one_line(blobs: Path) -> None:
    with pytest.raises(UserError, match="1 image at a time.*batch=2 or more"):
        train(tiny(blobs, "batch=1"))


def test_every_image_is_in_one_fold_and_groups_stay_together(blobs: Path) -> None:
    rows = [f"{index},{index // 2}" for index in range(6)]
    (blobs / "groups.csv").write_text("\n".join(["name,group", *rows]) + "\n")
    folder = SegmentationFolder(blobs, [])
    seen: list[str] = []
    for fold in range(3):
        parts, _ = folder_names(folder, tiny(blobs, "folds=3", f"fold={fold}").split)
        assert len(parts["validation"]) == 2 and len(parts["train"]) == 4
        assert len({int(name) // 2 for name in parts["validation"]}) == 1
        seen += parts["validation"]
    assert sorted(seen) == list("012345")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["folds=3", "fold=3"], "fold is 3; expected 0 to 2"),
        (["folds=3", "split.validation=val"], "set split.validation=null"),
        (["folds=7"], "6 images in 6 groups cannot make 7 folds"),
        (["loss.class_weights=[1,2,3]"], "expected 2, one a class"),
        (["loss.mask=tversky", "loss.class_weights=[1,2]"], "no effect with mask=tversky"),
        (["batch=4", "accumulate=3"], "a divisor of batch=4"),
    ],
)
def test_wrong_settings(blobs: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        folder_names(SegmentationFolder(blobs, []), tiny(blobs, *words).split)
