"""kernels.spatial_gate on a CPU, against the network's module and its definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from kernels import spatial_gate

LAST = torch.channels_last


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """x, weight, bias and the channels' factors."""
    made = torch.Generator().manual_seed(sum(shape))
    shapes = (shape, (1, 2, 7, 7), (1,), shape[:2])
    x, weight, bias, channels = (torch.randn(*s, generator=made).to(dtype) for s in shapes)
    return x, weight / 3, bias, channels.sigmoid()


def by_position(x: Tensor, weight: Tensor, bias: Tensor, channels: Tensor) -> Tensor:
    """The definition, position by position in float64."""
    x, weight, bias, channels = (t.double() for t in (x, weight, bias, channels))
    x = x * channels[:, :, None, None]
    out = torch.empty_like(x)
    height, width = x.shape[2:]
    for row in range(height):
        for column in range(width):
            total = bias.repeat(len(x))
            for dy in range(-3, 4):
                for dx in range(-3, 4):
                    y, z = row + dy, column + dx
                    if 0 <= y < height and 0 <= z < width:
                        here, factors = x[:, :, y, z], weight[0, :, dy + 3, dx + 3]
                        total = total + factors[0] * here.mean(1) + factors[1] * here.amax(1)
            out[:, :, row, column] = x[:, :, row, column] * total.sigmoid()[:, None]
    return out


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("form", [LAST, torch.contiguous_format])
def test_values_and_layouts(dtype: torch.dtype, form: torch.memory_format) -> None:
    x, *others = inputs((2, 5, 4, 9), dtype)
    x = x.contiguous(memory_format=form)
    found = spatial_gate(x, *others)
    rounding = {torch.float16: 4e-3, torch.bfloat16: 3e-2}.get(dtype, 1e-5)
    torch.testing.assert_close(
        found.double(), by_position(x, *others), rtol=rounding, atol=rounding
    )
    assert found.dtype == dtype and found.stride() == x.stride()


def test_is_the_networks_gate() -> None:
    from medisseg.model.blocks import ChannelGate, SpatialGate, gated

    torch.manual_seed(0)
    channel, spatial = ChannelGate(8), SpatialGate(bias=True)
    x = torch.randn(2, 8, 6, 5).contiguous(memory_format=LAST)
    with torch.no_grad():
        alone, both = spatial(x), spatial(channel(x))
        assert torch.equal(gated(x, channel, spatial), both)
        spatial.fused = True
        torch.testing.assert_close(spatial(x), alone)
        torch.testing.assert_close(gated(x, channel, spatial), both)


def test_opcheck_and_compile() -> None:
    x, weight, bias, channels = inputs((2, 8, 3, 5))
    x, weight = (t.contiguous(memory_format=LAST) for t in (x, weight))
    for optional in ((None, None), (bias, channels)):
        opcheck(torch.ops.medisseg.spatial_gate, (x, weight, *optional))
    compiled = torch.compile(spatial_gate, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(x, weight, bias, channels), spatial_gate(x, weight, bias, channels)
    )


def test_no_derivative() -> None:
    x, *others = inputs((1, 2, 3, 3))
    with pytest.raises(RuntimeError, match="for inference"):
        spatial_gate(x.requires_grad_(), *others).sum().backward()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"x": torch.zeros(2, 3, 4)}, "4 dimensions"),
        ({"x": torch.zeros(1, 0, 4, 4)}, "expected x"),
        ({"x": torch.zeros(1, 3, 4, 4).int()}, "float dtype"),
        ({"weight": torch.zeros(1, 2, 5, 5)}, "7, 7"),
        ({"bias": torch.zeros(3)}, r"bias \[1\]"),
        ({"channels": torch.zeros(1, 4)}, r"channels \[N, C\]"),
        ({"channels": torch.zeros(3)}, "2 dimensions"),
    ],
)
def test_wrong_input(changed: dict[str, Any], said: str) -> None:
    names = ("x", "weight", "bias", "channels")
    given = dict(zip(names, inputs((1, 3, 4, 4)), strict=True)) | changed
    with pytest.raises((TypeError, ValueError), match=said):
        spatial_gate(**given)
