"""A short training run has the same loss curve with our kernels and with the literal forms."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from literal_forms import literal_telu, literal_window_mix
from torch import Tensor

from medisseg.losses.objective import StageTwoObjective
from medisseg.model.create import create_model


def literal_dispersive(
    rows: Tensor, variant: str, tau: float, margin: float, normalize: bool, epsilon: float
) -> Tensor:
    assert variant == "infonce_l2" and not normalize
    distance = (rows[:, None] - rows[None]).square().sum(2)
    off = ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    return torch.log(torch.exp(-distance[off].double() / tau).mean() + epsilon).float()


def curve(device: str, steps: int, literal: bool, batch: int = 2) -> list[float]:
    torch.manual_seed(11)
    model = create_model("edge", encoder_weights="imagenet").to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)  # larger steps amplify rounding
    objective = StageTwoObjective()
    x = torch.randn(batch, 3, 128, 128).to(device)
    target = (x.mean(1) > 0.3).long()
    losses = []
    patches = {
        "medisseg.model.blocks.telu": literal_telu,
        "medisseg.model.cdfa.window_mix": literal_window_mix,
        "medisseg.losses.dispersive.dispersive_loss": literal_dispersive,
    }
    started = [mock.patch(name, form) for name, form in patches.items()] if literal else []
    for patch in started:
        patch.start()
    try:
        for _ in range(steps):
            total, _ = objective(model(x), target)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            losses.append(total.item())
    finally:
        for patch in started:
            patch.stop()
    return losses


def test_on_a_cpu_the_curve_is_the_same() -> None:
    ours, literal = (curve("cpu", 3, form) for form in (False, True))
    assert ours[-1] != ours[0]
    assert ours == pytest.approx(literal, abs=1e-3)


@pytest.mark.gpu
def test_on_a_gpu_the_curve_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a batch of 8: of 2, BatchNorm amplifies the GPU's own jitter, and two runs of the literal
    forms are 2e-3 apart after eight steps (of 8: 2e-5; H200)."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    ours, literal = (curve("cuda", 8, form, batch=8) for form in (False, True))
    assert ours == pytest.approx(literal, abs=1e-3)
