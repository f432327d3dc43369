"""The spatial gate of CBAM (Woo et al. 2018): x sigmoid(7 x 7 convolution of [mean, max]).

Mean and maximum are over the channels of each position. In PyTorch's operators that is a
convolution of two channels to one (10 us each by cuDNN, ``benchmarks/results/h200/lanes.txt``)
among five others; here it is two launches. For inference: it has no derivative.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.checks import floating, refuse_derivative, same_device

SIDE = 7  # of the convolution


def spatial_gate(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, channels: Tensor | None = None
) -> Tensor:
    """Return ``x`` times its spatial gate, after a channel gate where one is given.

    Args:
        x: [N, C, H, W], C at least 1.
        weight: [1, 2, 7, 7], of the mean, then of the maximum.
        bias: [1].
        channels: [N, C]: the channel gate's factors, with which ``x`` is multiplied first.

    Returns:
        As ``x``. The kernel computes in float32 and rounds once; other devices round as
        PyTorch's operators do.

    Raises:
        TypeError: Not floating point.
        ValueError: Shapes that do not belong together, or several devices.
    """
    given = {"weight": weight, "bias": bias, "channels": channels}
    tensors = {"x": x} | {name: each for name, each in given.items() if each is not None}
    for name, each in tensors.items():
        floating(name, each, {"bias": 1, "channels": 2}.get(name, 4))
    same_device(**tensors)
    shapes = {name: tuple(each.shape) for name, each in tensors.items()}
    expected = {"weight": (1, 2, SIDE, SIDE), "bias": (1,), "channels": tuple(x.shape[:2])}
    if x.shape[1] < 1 or any(shapes[name] != expected[name] for name in shapes if name != "x"):
        raise ValueError(
            f"got {', '.join(f'{name} {list(shape)}' for name, shape in shapes.items())}; expected "
            f"x [N, C, H, W], weight [1, 2, {SIDE}, {SIDE}], bias [1] and channels [N, C]"
        )
    gated: Tensor = torch.ops.medisseg.spatial_gate(x, weight, bias, channels)
    return gated


torch.library.define(
    "medisseg::spatial_gate",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? channels) -> Tensor",
)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, channels: Tensor | None) -> Tensor:
    """The same in PyTorch's own operators, of [N, C, H, W] in any layout."""
    if channels is not None:
        x = x * channels[:, :, None, None]
    pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
    bias = None if bias is None else bias.to(x.dtype)
    gate = torch.sigmoid(F.conv2d(pooled, weight.to(x.dtype), bias, padding=SIDE // 2))
    return torch.mul(x, gate, out=torch.empty_like(x))


torch.library.impl("medisseg::spatial_gate", "cpu", forward)


@torch.library.register_fake("medisseg::spatial_gate")
def _(x: Tensor, weight: Tensor, bias: Tensor | None, channels: Tensor | None) -> Tensor:
    return torch.empty_like(x)


@torch.library.impl("medisseg::spatial_gate", "cuda")
def _(x: Tensor, weight: Tensor, bias: Tensor | None, channels: Tensor | None) -> Tensor:
    from kernels.triton_ops import spatial_gate as gpu

    if gpu.takes(x, weight, bias, channels):
        return gpu.forward(x, weight, bias, channels)
    return forward(x, weight, bias, channels)


refuse_derivative(
    "medisseg::spatial_gate",
    "a derivative of kernels.spatial_gate, which is for inference; its definition in PyTorch's "
    "operators has one",
)
