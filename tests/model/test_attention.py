"""The decoder attention units against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medisseg.model.attention import ATTENTIONS, DualAttention, EfficientChannel, SqueezeExcitation
from medisseg.model.blocks import CBAT, ELAT, ChannelGate, SpatialGate
from medisseg.model.create import create_model


@pytest.fixture
def x() -> torch.Tensor:
    torch.manual_seed(5)
    return torch.randn(2, 32, 10, 12)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_published_counts() -> None:
    assert count(CBAT(128)) == 2283
    assert count(ELAT(64)) == 2759


def test_cbat_is_its_formula(x: torch.Tensor) -> None:
    unit = CBAT(32)

    def mlp(pooled: torch.Tensor) -> torch.Tensor:
        hidden = F.linear(pooled, unit.reduce.weight, unit.reduce.bias)
        hidden = hidden * torch.tanh(torch.exp(hidden))
        return F.linear(hidden, unit.expand.weight, unit.expand.bias)

    gated = x * torch.sigmoid(mlp(x.mean((2, 3))) + mlp(x.amax((2, 3))))[..., None, None]
    pooled = torch.stack([gated.mean(1), gated.amax(1)], 1)
    gate = torch.sigmoid(F.conv2d(pooled, unit.spatial.conv.weight, unit.spatial.conv.bias, 1, 3))
    torch.testing.assert_close(unit(x), gated * gate)


def test_cbam_is_a_channel_then_a_spatial_gate(x: torch.Tensor) -> None:
    unit = ATTENTIONS["cbam"](32, "telu")
    channel, spatial = unit
    assert isinstance(channel, ChannelGate) and isinstance(spatial, SpatialGate)
    pooled = [x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)]
    gate = sum(channel.expand(F.relu(channel.reduce(p))) for p in pooled)
    torch.testing.assert_close(unit(x), spatial(x * torch.sigmoid(gate)))


def test_se_and_eca_weigh_channels_by_their_average(x: torch.Tensor) -> None:
    mean = x.mean((2, 3))
    se = SqueezeExcitation(32)
    hidden = F.relu(mean @ se.reduce.weight.T + se.reduce.bias)
    gate = torch.sigmoid(hidden @ se.expand.weight.T + se.expand.bias)
    torch.testing.assert_close(se(x), x * gate[..., None, None])
    eca = EfficientChannel(32)
    assert eca.conv.kernel_size == (3,) and EfficientChannel(128).conv.kernel_size == (5,)
    kernel, padded = eca.conv.weight[0, 0], F.pad(mean, (1, 1))
    slid = sum(kernel[i] * padded[:, i : i + 32] for i in range(3))
    torch.testing.assert_close(eca(x), x * torch.sigmoid(slid)[..., None, None])


def test_dual_attention_is_danets() -> None:
    unit = DualAttention(32).eval()
    unit.position_scale.data.fill_(0.7)
    unit.channel_scale.data.fill_(0.3)
    y = torch.randn(2, 4, 5, 6)
    query, key, value = (p(y).flatten(2) for p in (unit.query, unit.key, unit.value))
    weights = torch.softmax(query.transpose(1, 2) @ key, -1)
    expected = y + 0.7 * (value @ weights.transpose(1, 2)).reshape(y.shape)
    torch.testing.assert_close(unit.attend_positions(y), expected)
    rows = y.flatten(2)
    energy = rows @ rows.transpose(1, 2)
    weights = torch.softmax(energy.max(-1, keepdim=True)[0] - energy, -1)
    torch.testing.assert_close(unit.attend_channels(y), y + 0.3 * (weights @ rows).reshape(y.shape))


@pytest.mark.parametrize("name", ATTENTIONS)
def test_every_unit_trains_inside_the_network(name: str) -> None:
    model = create_model("edge", attention=name).train()
    output = model(torch.randn(2, 3, 64, 64))
    output.logits.square().mean().backward()
    for unit in (decoder.attention for decoder in model.decoders.values()):
        gradients = [p.grad for p in unit.parameters()]
        assert all(g is not None and g.isfinite().all() for g in gradients)
        assert not gradients or any(g.abs().max() > 0 for g in gradients)
