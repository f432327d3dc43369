"""CDFA window mixing: every position and head mixes its 3 x 3 window by a softmaxed 9 x 9 matrix.

Summing the overlapping windows makes this exactly one 5 x 5 filter a position and head:

    out[p] = sum_d W[p, d] v[p + d],   W[p, d] = sum over (q, k) with k - q = d of A[p - q, q, k]

with A the softmax over the inputs k, and zero outside the image. No window is ever unfolded.
Layouts: logits [B, heads * 81, H, W] in the order (head, output q, input k), values
[B, heads * head_dim, H, W] in the order (head, channel).
"""

from __future__ import annotations

from collections.abc import Iterator
from types import EllipsisType

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.checks import (
    Context,
    compute_dtype,
    floating,
    once_differentiable,
    reverse_mode,
    same_device,
)

CELLS = 9  # a 3 x 3 window
PAIRS = CELLS * CELLS
TAPS = 25  # displacements k - q between two window cells
Index = tuple[EllipsisType | slice, ...]  # of a part of a map


def window_mix(attention_logits: Tensor, values: Tensor) -> Tensor:
    """Mix every 3 x 3 window of ``values`` and sum the overlapping windows.

    Args:
        attention_logits: [B, heads * 81, H, W], already scaled by head_dim ** -0.5.
        values: [B, heads * head_dim, H, W] on the same device; both in any memory layout.

    Returns:
        [B, heads * head_dim, H, W] in the dtype and memory layout of ``values``. Computed in
        float32 (float64 for float64 input); once differentiable.

    Raises:
        TypeError: Not floating point.
        ValueError: Shapes that do not belong together, or two devices.
        NotImplementedError: Within torch.func.grad or forward mode.
    """
    _check(attention_logits, values)
    reverse_mode("window_mix", "window_mix_convolution", attention_logits, values)
    mixed: Tensor = torch.ops.medisseg.window_mix(attention_logits, values)
    return mixed


def window_mix_convolution(attention_logits: Tensor, values: Tensor) -> Tensor:
    """The same in standard operators, for export: shapes as of :func:`window_mix`.

    The fixed sum A -> W is a depthwise 3 x 3 convolution that moves each weight to where it is
    read, and a matrix product that adds those of one displacement: 6.5 times fewer operations than
    one convolution of 81 to 25 channels. The softmax is spelled out, because ONNX Runtime moves
    its axis to the end and back: a CDFA of width 32 at 32 x 32 takes 6.1 ms there, 10 with Softmax
    (OpenVINO: 3.9 and 4.2; one core).
    """
    _check(attention_logits, values)
    batch, channels, height, width = values.shape
    heads = attention_logits.shape[1] // PAIRS
    logits = attention_logits.to(values.dtype)
    windows = logits.reshape(batch, heads * CELLS, CELLS, height, width)
    weights = (windows - windows.amax(2, keepdim=True)).exp()
    attention = weights / weights.sum(2, keepdim=True)
    flat = attention.reshape(batch, heads * PAIRS, height, width)
    shift = SHIFT.to(values).repeat(heads, 1, 1, 1)
    shifted = F.conv2d(flat, shift, padding=1, groups=heads * PAIRS)
    filters = ADD.to(values) @ shifted.reshape(batch, heads, PAIRS, height * width)
    filters = filters.reshape(batch, heads, TAPS, height, width)
    padded = F.pad(values, (2, 2, 2, 2)).reshape(batch, heads, -1, height + 4, width + 4)
    columns = [padded[..., x : x + width] for x in range(5)]
    mixed = sum(
        weight * columns[d % 5][..., d // 5 : d // 5 + height, :]
        for d, weight in enumerate(filters.split(1, 2))
    )
    return torch.as_tensor(mixed).reshape(batch, channels, height, width)


def _check(logits: Tensor, values: Tensor) -> None:
    floating("attention_logits", logits, 4)
    floating("values", values, 4)
    same_device(attention_logits=logits, values=values)
    heads, rest = divmod(logits.shape[1], PAIRS)
    same = logits.shape[0] == values.shape[0] and logits.shape[2:] == values.shape[2:]
    if rest or not heads or not same or values.shape[1] % heads:
        raise ValueError(
            f"got attention_logits {list(logits.shape)} and values {list(values.shape)}; "
            "expected [B, heads * 81, H, W] and [B, heads * head_dim, H, W]"
        )


def _shift_and_add() -> tuple[Tensor, Tensor]:
    """The fixed sum A -> W of one head: the kernels that shift [81, 1, 3, 3], who adds [25, 81]."""
    shift, add = torch.zeros(PAIRS, 1, 3, 3), torch.zeros(TAPS, PAIRS)
    for q in range(CELLS):
        for k in range(CELLS):
            # W[p] reads A at p - q; a convolution's kernel cell (1, 1) is p itself.
            shift[q * CELLS + k, 0, 2 - q // 3, 2 - q % 3] = 1
            dy, dx = k // 3 - q // 3, k % 3 - q % 3
            add[(dy + 2) * 5 + dx + 2, q * CELLS + k] = 1
    return shift, add


# Made here, not on first use: made while a graph is traced it would be part of that graph.
SHIFT, ADD = _shift_and_add()


torch.library.define("medisseg::window_mix", "(Tensor logits, Tensor values) -> Tensor")
torch.library.define(
    "medisseg::window_mix_backward",
    "(Tensor gradient, Tensor logits, Tensor values) -> (Tensor, Tensor)",
)


def forward(logits: Tensor, values: Tensor) -> Tensor:
    """The filter form in PyTorch's own operators, on any device: [N, C, H, W], as ``values``."""
    attention, padded = _prepare(logits, values)
    filters = _filters(attention)
    out = torch.zeros_like(padded[..., 2:-2, 2:-2])
    for d in range(TAPS):
        out.addcmul_(filters[:, :, d, None], _shifted(padded, d))
    return torch.empty_like(values).copy_(out.view(values.shape))


def backward(gradient: Tensor, logits: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients by logits [N, heads * 81, H, W] and values [N, C, H, W]; filters are remade."""
    attention, padded = _prepare(logits, values)
    filters = _filters(attention)
    flowing = gradient.to(padded.dtype).contiguous().view(padded[..., 2:-2, 2:-2].shape)
    dpadded, dfilters = torch.zeros_like(padded), torch.empty_like(filters)
    for d in range(TAPS):
        _shifted(dpadded, d).addcmul_(filters[:, :, d, None], flowing)
        torch.sum(flowing * _shifted(padded, d), 2, out=dfilters[:, :, d])
    dattention = torch.zeros_like(attention)
    for part, window, inside, outside in _placements(dattention, dfilters):
        part[inside] = window[outside]
    dattention -= (attention * dattention).sum(3, keepdim=True)
    dlogits = dattention.mul_(attention).view(logits.shape)
    dvalues = dpadded[..., 2:-2, 2:-2].reshape(values.shape)
    return torch.empty_like(logits).copy_(dlogits), torch.empty_like(values).copy_(dvalues)


def _prepare(logits: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Attention [B, heads, q, k, H, W], softmax over k; values [B, heads, head_dim, H+4, W+4]."""
    batch, channels, height, width = values.shape
    heads, dtype = logits.shape[1] // PAIRS, compute_dtype(logits, values)
    grid = logits.to(dtype).contiguous().view(batch, heads, CELLS, CELLS, height, width)
    held = values.to(dtype).contiguous().view(batch, heads, channels // heads, height, width)
    return grid.softmax(3), F.pad(held, (2, 2, 2, 2))


def _shifted(padded: Tensor, d: int) -> Tensor:
    y, x = divmod(d, 5)
    return padded[..., y : y + padded.shape[-2] - 4, x : x + padded.shape[-1] - 4]


def _placements(
    attention: Tensor, filters: Tensor
) -> Iterator[tuple[Tensor, Tensor, Index, Index]]:
    """Pair the 3 x 3 weights of each window output q with their place among the 5 x 5 filters."""
    batch, heads, _, _, height, width = attention.shape
    grid = filters.view(batch, heads, 5, 5, height, width)
    for q in range(CELLS):
        y, x = q // 3 - 1, q % 3 - 1
        part = attention[:, :, q].view(batch, heads, 3, 3, height, width)
        window = grid[:, :, 1 - y : 4 - y, 1 - x : 4 - x]
        inside: Index = (
            ...,
            *(slice(max(-s, 0), n - max(s, 0)) for s, n in ((y, height), (x, width))),
        )
        outside: Index = (
            ...,
            *(slice(max(s, 0), n + min(s, 0)) for s, n in ((y, height), (x, width))),
        )
        yield part, window, inside, outside


def _filters(attention: Tensor) -> Tensor:
    """W: [B, heads, 25, H, W]."""
    batch, heads, _, _, height, width = attention.shape
    filters = attention.new_zeros(batch, heads, TAPS, height, width)
    for part, window, inside, outside in _placements(attention, filters):
        window[outside] += part[inside]
    return filters


torch.library.impl("medisseg::window_mix", "cpu", forward)
torch.library.impl("medisseg::window_mix_backward", "cpu", backward)


@torch.library.register_fake("medisseg::window_mix")
def _(logits: Tensor, values: Tensor) -> Tensor:
    return torch.empty_like(values)


@torch.library.register_fake("medisseg::window_mix_backward")
def _(gradient: Tensor, logits: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(logits), torch.empty_like(values)


@torch.library.impl("medisseg::window_mix", "cuda")
def _(logits: Tensor, values: Tensor) -> Tensor:
    from kernels.triton_ops import window_mix as gpu

    return gpu.forward(logits, values) if gpu.takes(logits, values) else forward(logits, values)


@torch.library.impl("medisseg::window_mix_backward", "cuda")
def _(gradient: Tensor, logits: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    from kernels.triton_ops import window_mix as gpu

    if gpu.takes(logits, values):
        return gpu.backward(gradient, logits, values)
    return backward(gradient, logits, values)


def _save(ctx: Context, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Context, gradient: Tensor) -> tuple[Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor] = torch.ops.medisseg.window_mix_backward(
        gradient, *ctx.saved_tensors
    )
    return gradients


torch.library.register_autograd("medisseg::window_mix", _differentiate, setup_context=_save)
once_differentiable("medisseg::window_mix_backward", "window_mix", "window_mix_convolution")
