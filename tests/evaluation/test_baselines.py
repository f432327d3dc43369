"""Baselines answer to the calls of our networks."""

from __future__ import annotations

import pytest
import torch

from medisseg.errors import UserError
from medisseg.model.baselines import BASELINES, create_baseline


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("unet", 31_113_217), ("unetpp", 9_119_332), ("attention-unet", 31_740_337)],
)
def test_size(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = create_baseline(name)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("name", BASELINES)
def test_logits_and_inference_copy(name: str) -> None:
    torch.manual_seed(0)
    model = create_baseline(name, classes=3, width=8)
    output = model(torch.randn(2, 3, 48, 64))
    assert output.logits.shape == (2, 3, 48, 64)
    assert output.foreground is output.background is output.uncertainty is None
    output.logits.sum().backward()
    x = torch.randn(1, 3, 50, 70)
    with torch.no_grad():
        logits, same = model.eval()(x), model.for_inference()(x)
    assert logits.shape == (1, 3, 50, 70) and torch.equal(logits, same)
    assert model.info is not None
    again = create_baseline(model.info.architecture, 2, 3, **model.info.options)
    again.load_state_dict(model.state_dict())


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
        create_baseline("unet", width=8).for_inference(uncertainty=True)
