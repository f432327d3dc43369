"""TeLU: y = x tanh(exp(x)), forward and backward, saving x only (Fernandez and Mali 2024).

tanh(exp(x)) is 1 in float32 from x = 2.2 on, so clamping exp's argument at 4 changes
nothing and keeps exp finite in every dtype. Half precision computes in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.checks import floating, wide

HIGHEST = 4.0  # tanh(exp(4)) is 1 and its derivative 0, in float64 too
LOWEST = -1000.0  # exp is 0 from here on, in float64 too; keeps -inf * 0 from being NaN


def telu(x: Tensor) -> Tensor:
    """Return x tanh(exp(x)): any shape, ``x``'s dtype and memory layout; -0 at -inf.

    Raises:
        TypeError: ``x`` is not a floating-point tensor.

    Example:
        >>> telu(torch.tensor([0.0, 3.0]))
        tensor([0., 3.])
    """
    floating("x", x)
    return torch.ops.medisseg.telu(x)


def telu_reference(x: Tensor) -> Tensor:
    """The definition in plain operators (Min, Exp, Tanh, Mul), for export and for float64."""
    return x * torch.tanh(torch.exp(torch.clamp(x, max=HIGHEST)))


@torch.library.custom_op("medisseg::telu", mutates_args=(), device_types="cpu")
def _forward(x: Tensor) -> Tensor:
    v = wide(x)
    return v.clamp(max=HIGHEST).exp_().tanh_().mul_(v.clamp(min=LOWEST)).to(x.dtype)


@torch.library.custom_op("medisseg::telu_backward", mutates_args=(), device_types="cpu")
def _backward(gradient: Tensor, x: Tensor) -> Tensor:
    v = wide(x)
    u = v.clamp(max=HIGHEST).exp_()
    t = u.tanh()
    # t + x u (1 - t^2)
    slope = u.mul_(v.clamp(min=LOWEST)).addcmul_(u * t, t, value=-1).add_(t)
    return slope.mul_(gradient).to(x.dtype)


@_forward.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@_backward.register_fake
def _(gradient: Tensor, x: Tensor) -> Tensor:
    return torch.empty_like(x)


@_forward.register_kernel("cuda")
def _(x: Tensor) -> Tensor:
    from kernels.triton_ops import telu as gpu

    return gpu.forward(x)


@_backward.register_kernel("cuda")
def _(gradient: Tensor, x: Tensor) -> Tensor:
    from kernels.triton_ops import telu as gpu

    return gpu.backward(gradient, x)


def _save(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, gradient: Tensor) -> Tensor:
    return torch.ops.medisseg.telu_backward(gradient, *ctx.saved_tensors)


_forward.register_autograd(_differentiate, setup_context=_save)
