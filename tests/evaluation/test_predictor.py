"""The predictor joins network and transforms; masks come back at the image's own size."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from medisseg.convention import InputConvention
from medisseg.device import pick_device
from medisseg.errors import UserError
from medisseg.predictor import Prediction, Predictor, logit


class RedIsPolyp(torch.nn.Module):
    """Answers 40 (red - 0.5), or three maps: background 0.5, red, blue, times 40."""

    def __init__(self, classes: int = 1, threshold: float = 0.5, **convention: Any) -> None:
        super().__init__()
        plain = {"mean": (0, 0, 0), "std": (1, 1, 1), "size": (64, 96), **convention}
        self.info = SimpleNamespace(
            convention=InputConvention(**plain),
            threshold=threshold,
            classes=classes,
            architecture="red",
            labels=(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        red, blue = x[:, 0:1], x[:, 2:3]
        if self.info.classes == 1:
            return 40 * (red - 0.5)
        return 40 * torch.cat([torch.full_like(red, 0.5), red, blue], 1)


def scene(height: int, width: int) -> np.ndarray:
    """A black picture; red in the left half, blue in the right quarter."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2, 0] = 255
    image[:, 3 * width // 4 :, 2] = 255
    return image


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (200, 120), (37, 300), (16, 16)])
def test_mask_has_the_size_of_the_image(resize: str, height: int, width: int) -> None:
    image = scene(height, width)
    prediction = Predictor(RedIsPolyp(resize=resize), device="cpu")(image)
    assert prediction.mask.dtype == np.uint8 and prediction.mask.shape == (height, width)
    wrong = (prediction.mask != (image[..., 0] > 127)).mean(axis=0)
    border = 1 + width // 64  # a few columns where the two colours meet
    assert not np.delete(wrong, np.s_[width // 2 - border : width // 2 + border]).any()


def test_channel_order_is_the_conventions() -> None:
    image = scene(64, 96)
    blue = Predictor(RedIsPolyp(color="BGR"), device="cpu")(image).mask
    assert np.array_equal(blue, (image[..., 2] > 127).astype(np.uint8))


def test_classes_are_the_largest_logit() -> None:
    prediction = Predictor(RedIsPolyp(classes=3), device="cpu")(scene(64, 96))
    assert prediction.mask[5, 10] == 1 and prediction.mask[5, 60] == 0
    assert prediction.mask[5, 90] == 2
    assert prediction.probability.shape == (3, 64, 96)
    assert np.allclose(prediction.probability.sum(0), 1, atol=1e-6)


def test_threshold_acts_on_probability() -> None:
    logits = np.array([[[-1e4, -0.1, 0.0, 0.1, 1.5, 1e4]]], np.float32)
    assert Prediction(logits, 0.5).mask.tolist() == [[0, 0, 0, 1, 1, 1]]
    assert Prediction(logits, 0.8).mask.tolist() == [[0, 0, 0, 0, 1, 1]]
    expected = 1 / (1 + np.exp(-np.clip(logits[0], -100, 100).astype(np.float64)))
    assert np.allclose(Prediction(logits).probability, expected, atol=1e-7)
    assert logit(0.8) == pytest.approx(np.log(4))


def test_checkpoints_threshold_unless_another_is_given() -> None:
    assert Predictor(RedIsPolyp(threshold=0.3), device="cpu").threshold == 0.3
    assert Predictor(RedIsPolyp(threshold=0.3), device="cpu", threshold=0.7).threshold == 0.7
    with pytest.raises(UserError, match="within"):
        Predictor(RedIsPolyp(), device="cpu", threshold=50)


def test_wrong_images_and_devices_are_refused() -> None:
    predictor = Predictor(RedIsPolyp(), device="cpu")
    with pytest.raises(ValueError, match="expected uint8 RGB"):
        predictor(np.zeros((8, 8), np.uint8))
    with pytest.raises(ValueError, match="expected uint8 RGB"):
        predictor(np.zeros((8, 8, 3), np.float32))
    for word in ("gpu", "cpu:x", "cpu:", "cpu:7", "cuda:", "cuda:-1", "cuda:²", ""):
        with pytest.raises(UserError, match="--device is .* expected auto, cpu"):
            pick_device(word, "--device")
    with pytest.raises(UserError, match="device is cuda:99, but PyTorch sees .*; use cpu"):
        pick_device("cuda:99")
    assert pick_device("cpu") == "cpu"
    with pytest.raises(UserError, match="expected fp32"):
        Predictor(RedIsPolyp(), device="cpu", precision="fp8")


def test_a_network_that_answers_nan_is_refused() -> None:
    model = RedIsPolyp()
    model.forward = lambda x: x[:, :1] * float("nan")  # type: ignore[method-assign]
    predictor = Predictor(model, device="cpu")
    with pytest.raises(UserError, match="answered NaN"):
        predictor(scene(8, 8))


def test_bundles_are_opened_by_the_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def load_engine(source: Path, device: str) -> SimpleNamespace:
        opened.append((source, device))
        return SimpleNamespace(
            convention=InputConvention(), threshold=0.4, classes=1, labels=(), name="fake engine"
        )

    def points(found: list[Any]) -> Any:
        return lambda group: found if group == "medisseg.engines" else []

    (tmp_path / "manifest.json").write_text("{}")
    point = SimpleNamespace(name="bundle", load=lambda: load_engine)
    monkeypatch.setattr(metadata, "entry_points", points([point]))
    predictor = Predictor(tmp_path, device="cpu")
    assert (predictor.name, predictor.threshold) == ("fake engine", 0.4)
    assert opened == [(tmp_path, "cpu")]
    monkeypatch.setattr(metadata, "entry_points", points([]))
    with pytest.raises(UserError, match="pip install"):
        Predictor(tmp_path)
