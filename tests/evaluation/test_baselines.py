"""Baselines answer to the calls of our networks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from medisseg.checkpoint import save_checkpoint
from medisseg.convention import InputConvention
from medisseg.errors import UserError
from medisseg.losses.mask import mask_loss
from medisseg.losses.objective import StageTwoObjective
from medisseg.model.baselines import BASELINES, create_baseline
from medisseg.model.create import create_model
from medisseg.model.inference import for_inference
from medisseg.predictor import Predictor


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("unet", 31_113_217),
        ("unetpp", 9_119_332),
        ("attention-unet", 31_740_337),
        ("dynunet", 33_460_865),  # nnU-Net's at 256 x 256
        ("unet-r50", 32_109_681),
    ],
)
def test_size(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = create_baseline(name)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("name", BASELINES)
def test_logits_and_inference_copy(name: str) -> None:
    torch.manual_seed(0)
    model = create_baseline(name, classes=3, **({} if name == "unet-r50" else {"width": 8}))
    output = model(torch.randn(2, 3, 48, 64))
    assert output.logits.shape == (2, 3, 48, 64)
    assert output.foreground is output.background is output.uncertainty is None
    output.logits.sum().backward()
    x = torch.randn(1, 3, 50, 70)
    with torch.no_grad():
        logits, same = model.eval()(x), for_inference(model)(x)
    assert logits.shape == (1, 3, 50, 70) and torch.equal(logits, same)
    assert model.info is not None
    again = create_baseline(model.info.architecture, 2, 3, **model.info.options)
    again.load_state_dict(model.state_dict())


def test_by_name_from_creation_to_prediction(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("attention-unet", width=8).eval()
    info = dataclasses.replace(model.info, convention=InputConvention(size=(32, 48)))
    path = save_checkpoint(tmp_path / "unet.safetensors", model, info)
    image = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    with torch.no_grad():
        x = torch.from_numpy(info.convention.preprocess(image))[None]
        expected = info.convention.restore(model(x)[0].numpy(), (40, 70))
    prediction = Predictor(path, device="cpu")(image)
    assert np.allclose(prediction.logits, expected, atol=1e-5)


def test_objective_of_a_baseline_is_the_mask_loss() -> None:
    torch.manual_seed(0)
    model, target = create_model("unet", width=8), torch.randint(0, 2, (2, 32, 32))
    output = model(torch.randn(2, 3, 32, 32))
    total, parts = StageTwoObjective()(output, target)
    assert torch.equal(total, mask_loss(output.logits, target)) and set(parts) == {"mask"}
    total.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_what_a_baseline_has_not() -> None:
    for keywords, message in (
        ({"stage": 1}, "one stage"),
        ({"encoder_weights": "imagenet"}, "random weights"),
        ({"cbat": True}, "width alone"),
        ({"width": 5}, "even number"),
    ):
        with pytest.raises(UserError, match=message):
            create_baseline("unet", **keywords)
    with pytest.raises(UserError, match="no uncertainty"):
        for_inference(create_baseline("unet", width=8), uncertainty=True)


def test_a_unet_on_resnet50_takes_torchvisions_weights(tmp_path: Path) -> None:
    state = create_model("medisseg-r50", stage=1).encoder.state_dict()
    encoder = create_baseline("unet-r50").network.get_submodule("encoder")
    whole = {name: torch.full_like(value, 2) for name, value in encoder.state_dict().items()}
    assert all(whole[name].shape == value.shape for name, value in state.items())
    torch.save(whole, tmp_path / "resnet50.pth")
    loaded = create_model("unet-r50", encoder_weights=tmp_path / "resnet50.pth")
    filled = loaded.network.get_submodule("encoder").state_dict()
    assert all((value == 2).all() for value in filled.values())
    with pytest.raises(UserError, match="no options; got width"):
        create_baseline("unet-r50", width=8)
