"""Maps and embeddings of networks whose features are known, and the whole command."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from medisseg.checkpoint import save_checkpoint
from medisseg.convention import InputConvention
from medisseg.data.folder import Sample
from medisseg.errors import UserError
from medisseg.evaluation import explain_command
from medisseg.evaluation.explain import FeatureView, mask_share
from medisseg.evaluation.explain_page import heat, spread
from medisseg.evaluation.names import label, labels


class Output(NamedTuple):
    logits: torch.Tensor
    features: dict[str, torch.Tensor]


class RedMinusBlue(nn.Module):
    """Feature: the colour channels at half size; logits: red - blue, 0 elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, affine=False)
        convention = InputConvention(mean=(0, 0, 0), std=(1, 1, 1), size=(32, 32))
        self.info = SimpleNamespace(
            convention=convention, threshold=0.5, classes=1, architecture="rb"
        )

    def forward(self, x: torch.Tensor) -> Any:
        feature = nn.functional.avg_pool2d(self.norm(x), 2)
        logits = nn.functional.interpolate(feature[:, :1] - feature[:, 2:], scale_factor=2.0)
        return Output(logits, {"early": feature}) if self.training else logits


def scene() -> Sample:
    image, mask = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    image[:32, :32, 0], image[32:, 32:, 2], image[:32, 32:, 1] = 255, 255, 255
    mask[:32, :32] = 1
    return Sample(image, mask, "scene")


def test_map_is_bright_where_the_feature_speaks_for_the_region() -> None:
    view = FeatureView(RedMinusBlue(), "rb")
    cam = view.activation_map(scene().image)
    assert cam.shape == (64, 64) and cam.max() == pytest.approx(1.0)
    assert cam[4:28, 4:28].min() > 0.99  # red raises the logits
    assert cam[36:60, 36:60].max() < 0.01  # blue lowers them
    assert cam[4:28, 36:60].max() < 0.01  # green does not matter


def test_looking_leaves_the_network_as_it_was() -> None:
    model = RedMinusBlue()
    before = model.norm.running_mean.clone()
    view = FeatureView(model, "rb")
    view.activation_map(scene().image)
    view.embeddings([scene()] * 2)
    assert torch.equal(model.norm.running_mean, before)
    assert not model.training and not model.norm.training


def test_embeddings_are_means_and_labelled_positions() -> None:
    found = FeatureView(RedMinusBlue(), "rb").embeddings([scene()] * 3, positions=10)
    assert np.allclose(found.images, 0.25, atol=1e-4)
    assert found.inside.tolist() == ([True] * 5 + [False] * 5) * 3
    assert np.allclose(found.positions[found.inside], (1, 0, 0), atol=1e-4)
    assert not found.positions[~found.inside, 0].any()
    assert set(found.measures()) == {"image", "pixel"}


def test_mask_share() -> None:
    convention = InputConvention(size=(32, 32))
    share = mask_share(scene().mask, convention, (3, 2))
    assert np.allclose(share[:, 1], 0) and np.allclose(share[[0, 2], 0], [1, 0])


def test_spread_and_heat() -> None:
    assert spread(10, 3) == [0, 4, 9] and spread(2, 8) == [0, 1] and spread(5, 1) == [0]
    image = np.full((2, 2, 3), 90, np.uint8)
    values = np.array([[0, 1], [0, 0]], np.float32)
    got = heat(image, values)
    assert np.array_equal(got[0, 0], image[0, 0]) and got[0, 1].max() > 150


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    from medisseg.model.create import create_model

    paths = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = create_model("edge").eval()
        path = tmp_path_factory.mktemp(f"run{seed}") / "best.safetensors"
        info = dataclasses.replace(model.info, convention=InputConvention(size=(96, 96)))
        paths.append(str(save_checkpoint(path, model, info)))
    return paths


def write_folder(root: Path, count: int = 3) -> None:
    generator = np.random.default_rng(0)
    for index in range(count):
        mask = np.zeros((90, 120), np.uint8)
        mask[20 : 50 + 5 * index, 30:70] = 255
        image = generator.integers(0, 90, (90, 120, 3), dtype=np.uint8)
        image[mask > 0, 0] += 120
        for kind, pixels in (("images", image), ("masks", mask)):
            (root / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / kind / f"{index}.png")


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    explain_command.add_arguments(parser)
    return parser.parse_args(words)


def test_command_with_two_real_networks(tmp_path: Path, checkpoints: list[str]) -> None:
    write_folder(tmp_path / "data")
    words = [checkpoints[0], "--compare", checkpoints[1], "--data", str(tmp_path / "data")]
    out = tmp_path / "out"
    more = ["--split", "all", "--out", str(out), "--images", "2", "--device", "cpu"]
    assert explain_command.run(arguments(*words, *more)) == 0
    reported = json.loads((out / "explain.json").read_text())
    assert [model["name"] for model in reported["models"]] == ["run00", "run10"]
    for model in reported["models"]:
        assert model["image"]["count"] == 3
        assert 0 < model["image"]["effective_rank"] <= 2 + 1e-9
    assert sorted(p.name for p in (out / "maps").iterdir()) == ["0.jpg", "2.jpg"]
    assert Image.open(out / "maps/0.jpg").size == (3 * 120 + 2 * 4, 90)
    assert Image.open(out / "embeddings.png").size[0] > 600
    assert "run10" in (out / "index.html").read_text()


def test_names_of_checkpoints(tmp_path: Path) -> None:
    assert label("edge-kvasir") == "edge-kvasir"
    assert label(tmp_path / "with" / "best.safetensors") == "with"
    one, two = str(tmp_path / "a/x.safetensors"), str(tmp_path / "b/x.safetensors")
    assert labels([one, two]) == ["a/x", "b/x"]
    assert labels([one, str(tmp_path / "b/best.safetensors")]) == ["x", "b"]


def test_wrong_use(tmp_path: Path, checkpoints: list[str]) -> None:
    write_folder(tmp_path / "data", count=2)
    words = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--split", "all"]
    with pytest.raises(UserError, match="at least 3"):
        explain_command.run(arguments(checkpoints[0], *words))
    with pytest.raises(UserError, match="--placement"):
        explain_command.run(arguments(checkpoints[0], *words, "--placement", "deep"))
    from medisseg.model.baselines import create_baseline

    with pytest.raises(UserError, match="no names"):
        FeatureView(create_baseline("unet", width=8), "unet")
