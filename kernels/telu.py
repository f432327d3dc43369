"""TeLU: y = x tanh(exp(x)), forward and backward, saving x only (Fernandez and Mali 2024).

tanh(exp(x)) is 1 from x = 4 on in every dtype, so clamping exp's argument there changes nothing
and keeps the derivative t + x u (1 - t^2), u = exp(x), t = tanh(u), finite. Half precision
computes in float32. The operator is once differentiable.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from kernels.checks import Context, floating, once_differentiable, one_order, reverse_mode, wide

HIGHEST = 4.0  # tanh(exp(4)) is 1 and its derivative 0, in float64 too
LOWEST = -1000.0  # exp is 0 from here on, in float64 too; keeps -inf * 0 from being NaN
CHUNK = 1 << 17  # numbers at a time: three float32 buffers stay within a core's cache


def telu(x: Tensor) -> Tensor:
    """Return x tanh(exp(x)): any shape, ``x``'s dtype and memory layout; -0 at -inf.

    Exporters that want standard operators trace :func:`telu_reference` instead.

    Raises:
        TypeError: ``x`` is not a floating-point tensor.
        NotImplementedError: Within torch.func.grad or forward mode.

    Example:
        >>> telu(torch.tensor([0.0, 3.0]))
        tensor([0., 3.])
    """
    floating("x", x)
    reverse_mode("telu", "telu_reference", x)
    out: Tensor = torch.ops.medisseg.telu(x)
    return out


def telu_reference(x: Tensor) -> Tensor:
    """The definition in plain operators, of any shape; in ONNX it is Min, Exp, Tanh, Mul."""
    highest = torch.full((), HIGHEST, dtype=x.dtype, device=x.device)
    return x * torch.tanh(torch.exp(torch.minimum(x, highest)))


torch.library.define("medisseg::telu", "(Tensor x) -> Tensor")
torch.library.define("medisseg::telu_backward", "(Tensor gradient, Tensor x) -> Tensor")


def forward(x: Tensor) -> Tensor:
    """The value, of any shape and device, in chunks that stay in cache between passes."""
    out = torch.empty_like(x)
    for y, v, spare, t in _chunks(out, x):
        held = _clamp(v, y if y.dtype == t.dtype else spare, max=None)
        torch.exp(held, out=t).tanh_()
        held.mul_(t)
        if held is not y:
            y.copy_(held)
    return out


def backward(gradient: Tensor, x: Tensor) -> Tensor:
    """gradient x derivative, both of the shape of x, on any device, in chunks as above."""
    out = torch.empty_like(x)
    for d, v, g, spare, t in _chunks(out, x, gradient):
        held = _clamp(v, d if d.dtype == t.dtype else spare, max=HIGHEST)
        torch.exp(held, out=t)
        held.mul_(t)
        t.tanh_()
        torch.ops.aten.tanh_backward.grad_input(held, t, grad_input=held)  # x u (1 - t^2)
        held.add_(t).mul_(g)
        if held is not d:
            d.copy_(held)
    return out


def _clamp(x: Tensor, out: Tensor, max: float | None) -> Tensor:
    if x.dtype == out.dtype:
        return torch.clamp(x, LOWEST, max, out=out)
    return out.copy_(x).clamp_(LOWEST, max)


def _chunks(out: Tensor, *inputs: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Parts in memory order, or all at once where layouts differ, each with two buffers."""
    tensors = (out, *inputs)
    parts: Iterable[tuple[Tensor, ...]] = (tensors,)
    if out.numel() > CHUNK and one_order(*tensors):
        flat = [x.as_strided((x.numel(),), (1,), x.storage_offset()) for x in tensors]
        parts = zip(*(x.split(CHUNK) for x in flat), strict=True)
    buffers: tuple[Tensor, ...] = ()
    for part in parts:
        if not buffers or buffers[0].shape != part[0].shape:
            buffers = tuple(torch.empty_like(wide(part[0])) for _ in range(2))
        yield *part, *buffers


torch.library.impl("medisseg::telu", "cpu", forward)
torch.library.impl("medisseg::telu_backward", "cpu", backward)


@torch.library.register_fake("medisseg::telu")
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("medisseg::telu_backward")
def _(gradient: Tensor, x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.impl("medisseg::telu", "cuda")
def _(x: Tensor) -> Tensor:
    from kernels.triton_ops import telu as gpu

    return gpu.forward(x) if gpu.takes(x) else forward(x)


@torch.library.impl("medisseg::telu_backward", "cuda")
def _(gradient: Tensor, x: Tensor) -> Tensor:
    from kernels.triton_ops import telu as gpu

    return gpu.backward(gradient, x) if gpu.takes(x, gradient) else backward(gradient, x)


def _save(ctx: Context, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Context, gradient: Tensor) -> Tensor:
    found: Tensor = torch.ops.medisseg.telu_backward(gradient, *ctx.saved_tensors)
    return found


torch.library.register_autograd("medisseg::telu", _differentiate, setup_context=_save)
once_differentiable("medisseg::telu_backward", "telu", "telu_reference")
