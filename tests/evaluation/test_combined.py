"""Ensembles and flips: the mean of the members' probabilities, at the right place."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medisseg import cli
from medisseg.checkpoint import save_checkpoint
from medisseg.convention import InputConvention
from medisseg.errors import UserError
from medisseg.evaluation.combined import FLIPS, CombinedPredictor, probabilities
from medisseg.evaluation.opening import combined_label
from medisseg.labels import make_labels
from medisseg.model.create import create_model
from medisseg.predictor import Predictor


class Engine:
    """Answers with a fixed linear map of the image's red and its place (so flips matter)."""

    def __init__(self, gain: float, classes: int = 1, size: tuple[int, int] = (32, 48)) -> None:
        self.gain, self.classes, self.name, self.threshold = gain, classes, f"gain {gain}", 0.5
        self.convention = InputConvention(mean=(0, 0, 0), std=(1, 1, 1), size=size)

    def infer(self, batch: np.ndarray) -> np.ndarray:
        ramp = np.linspace(-1, 1, batch.shape[3], dtype=np.float32)
        one = self.gain * (batch[:, :1] - 0.5) + ramp
        return one if self.classes == 1 else np.concatenate([-one, one, 2 * one], 1)


def member(gain: float, classes: int = 1, size: tuple[int, int] = (32, 48)) -> Predictor:
    made = object.__new__(Predictor)
    engine = Engine(gain, classes, size)
    made.__dict__.update(
        engine=engine, convention=engine.convention, classes=classes, threshold=0.5,
        name=engine.name, labels=(),
    )  # fmt: skip
    return made


IMAGES = [np.random.default_rng(0).integers(0, 256, (32, 48, 3)).astype(np.uint8)]


@pytest.mark.parametrize("classes", [1, 3])
def test_an_ensemble_is_the_mean_of_probabilities(classes: int) -> None:
    members = [member(2, classes), member(8, classes)]
    combined = CombinedPredictor(members)
    mean = np.mean([probabilities(m.logits(IMAGES)) for m in members], 0)
    assert np.allclose(probabilities(combined.logits(IMAGES)), mean, atol=1e-5)
    assert combined(IMAGES[0]).mask.shape == (32, 48)


def test_flips_are_turned_back() -> None:
    one = member(4)
    combined = CombinedPredictor([one], "flips")
    views = []
    for axes in FLIPS:
        turned = np.flip(IMAGES[0], [axis - 2 for axis in axes])
        views.append(np.flip(probabilities(one.logits([np.ascontiguousarray(turned)])), axes))
    mean = np.mean(views, 0)
    assert np.allclose(probabilities(combined.logits(IMAGES)), mean, atol=1e-5)
    assert np.abs(mean - views[0]).max() > 0.1  # the ramp is not symmetric


def test_members_must_go_together() -> None:
    with pytest.raises(UserError, match="1 and 3 classes"):
        CombinedPredictor([member(1), member(1, 3)])
    with pytest.raises(UserError, match=r"inputs .*\(32, 48\).*\(64, 64\)"):
        CombinedPredictor([member(1), member(1, size=(64, 64))])


def test_what_it_is_called() -> None:
    assert combined_label(["runs/a/best.safetensors", "b.safetensors"], "flips") == "a + b, flips"


@pytest.mark.parametrize("options", [["--ensemble"], ["--tta", "flips"]])
def test_commands_take_several_views_and_networks(options: list[str], tmp_path: Path) -> None:
    """Both commands, with checkpoints of a named class."""
    files = []
    for seed in (1, 2)[: 2 if "--ensemble" in options else 1]:
        torch.manual_seed(seed)
        model = create_model("edge", stage=1, classes=2)
        convention = replace(model.info.convention, size=(64, 64))
        labels = make_labels(2, ("polyp",))
        info = replace(model.info, convention=convention, labels=labels)
        files.append(str(save_checkpoint(tmp_path / f"{seed}.safetensors", model, info)))
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    Image.fromarray(IMAGES[0]).save(tmp_path / "images" / "a.png")
    Image.fromarray(np.eye(32, 48, dtype=np.uint8)).save(tmp_path / "masks" / "a.png")
    out = str(tmp_path / "evaluation")
    chosen = ["evaluate", *files, *options, "--data", str(tmp_path), "--split", "all"]
    assert cli.main([*chosen, "--out", out]) == 0
    about = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert [label["name"] for label in about["labels"]] == ["polyp"]
    others = ["--ensemble", *files[1:]] if files[1:] else options
    assert cli.main(["predict", files[0], str(tmp_path / "images"), *others, "--out", out]) == 0
