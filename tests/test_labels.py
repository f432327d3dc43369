"""Names and colours of classes: checked where they come in, carried to checkpoint and screen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.analysis.tracking import Region, TemporalFilter, Track
from deploy.outputs.drawing import draw_mask
from deploy.replay.player import labels_of, shown_mask
from export.model_info import ModelInfo
from kernels.frames import encode_rle
from medisseg.checkpoint import KEY, read_header, save_checkpoint
from medisseg.config import load_config
from medisseg.convention import InputConvention
from medisseg.errors import UserError
from medisseg.evaluation.pictures import class_color
from medisseg.evaluation.predict import mask_picture
from medisseg.labels import Label, make_labels, read_labels
from medisseg.model.create import create_model
from medisseg.predictor import Predictor

TWO = (Label("neoplastic", (230, 159, 0)), Label("non-neoplastic", (0, 158, 115)))


def test_labels_have_defaults() -> None:
    assert make_labels(1) == () and make_labels(1, ["polyp"])[0].color == class_color(1)
    assert [label.name for label in make_labels(3)] == ["class 1", "class 2"]
    colors = ["#e69f00", "#009e73"]
    assert make_labels(3, [label.name for label in TWO], colors) == TWO


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("class_names=[one]", "class_names has 1 entries for 2 classes"),
        ("class_names=[one,one]", "each name once"),
        ("class_colors=[red,green]", "class_colors holds 'red'; expected such as '#e69f00'"),
        ("class_names=[a,'']", "class name is ''"),
    ],
)
def test_wrong_labels_are_named(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config("edge", ["classes=3", override])


def test_labels_travel_with_a_checkpoint(tmp_path: Path) -> None:
    import dataclasses

    network = create_model("edge-lite", classes=3).eval()
    path = tmp_path / "three.safetensors"
    save_checkpoint(path, network, dataclasses.replace(network.info, labels=TWO))
    assert read_header(path).labels == TWO
    assert Predictor(path, "cpu").labels == TWO
    assert ModelInfo(InputConvention(), classes=3, labels=TWO).labels == TWO
    from export.runtime.loading import load_engine

    with load_engine(path, device="cpu") as engine:
        assert engine.labels == TWO


@pytest.mark.parametrize(
    "labels",
    [
        [{"name": "a", "color": [1, 2, 3]}],
        [{"name": "a\n", "color": [1, 2, 3]}] * 2,
        [{"name": "a", "color": [1, 2, 300]}, {"name": "b", "color": [1, 2, 3]}],
        [{"name": "a" * 41, "color": [1, 2, 3]}, {"name": "b", "color": [1, 2, 3]}],
    ],
)
def test_a_header_is_not_believed(tmp_path: Path, labels: list) -> None:
    import json

    from safetensors.torch import save_file

    with pytest.raises(ValueError, match=r"class (name|colour|labels)"):
        read_labels(labels, 3)
    network = create_model("edge-lite", classes=3)
    header = {**network.info.to_dict(), "labels": labels}
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors", {KEY: json.dumps(header)})
    with pytest.raises(UserError, match="header that this version cannot read"):
        read_header(tmp_path / "a.safetensors")


def test_pictures_have_the_labels_colours() -> None:
    mask = np.array([[0, 1, 2]], np.uint8)
    picture = np.asarray(mask_picture(mask, 3, TWO).convert("RGB"))
    assert picture[0].tolist() == [[0, 0, 0], [230, 159, 0], [0, 158, 115]]
    screen = np.zeros((32, 48, 3), np.uint8)
    drawn = np.repeat(np.repeat(mask, 32, 0), 16, 1)
    draw_mask(screen, drawn, 1.0, TWO)
    assert screen[16, 8].tolist() == [0, 0, 0]
    for column, label in ((24, TWO[0]), (40, TWO[1])):
        assert np.abs(screen[16, column].astype(int) - label.color).max() <= 1


def test_a_track_keeps_the_class_of_most_frames() -> None:
    memory = TemporalFilter()
    seen = [TWO[0], TWO[1], TWO[1], TWO[0], TWO[1]]
    names = []
    for k, label in enumerate(seen):
        found = [Region((10, 10, 40, 40), 1600, 0.9, label)]
        (track,) = memory.update(found, k / 25, k, 0.5, 0).shown
        names.append(track.label)
    assert names == [TWO[0], TWO[0], TWO[1], TWO[1], TWO[1]]
    reported = track.to_dict()
    assert reported["label"] == {"name": "non-neoplastic", "color": (0, 158, 115)}
    assert "votes" not in reported and Track.from_dict(reported).label == TWO[1]


def test_a_replay_shows_the_classes_that_were_recorded() -> None:
    mask = np.zeros((6, 6), np.uint8)
    mask[:2, :2] = 2
    part = encode_rle((mask == 2).astype(np.uint8))
    line = {"classes": [{"name": "non-neoplastic", "color": [0, 158, 115], "rle": part}]}
    assert labels_of(line) == TWO[1:]
    assert np.array_equal(shown_mask(line), (mask > 0).astype(np.uint8))
