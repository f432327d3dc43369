"""What benchmarks/kernels.py measures: each operator as we do it and as it is written by hand.

Shapes are the network's: TeLU after a convolution of 64 channels, window mixing of CDFA at a
quarter of the input, the dispersive loss over pooled images (few long rows) and pixels (many rows).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import kernels
from benchmarks.network import literal_telu, literal_window_mix

Provider = Callable[..., Tensor]
EAGER, COMPILED, OURS = "eager", "torch.compile", "ours"
HALF = (torch.float16, torch.bfloat16)
SIZES = {torch.float32: 4, torch.float16: 2, torch.bfloat16: 2}


@dataclass(frozen=True)
class Case:
    """One operator at one shape and dtype.

    ``bytes`` is the least that must move, forward and backward; ``flop`` the least arithmetic where
    that, not memory, is the bound.
    """

    op: str
    dtype: torch.dtype
    shape: str
    inputs: Callable[[], tuple[Tensor, ...]]
    providers: dict[str, Provider]
    bytes: tuple[int, int]
    flop: tuple[int, int] | None = None


def cases(device: str, quick: bool) -> list[Case]:
    """All cases of a device, the most wanted first."""
    gpu = device == "cuda" and not quick
    dtypes = [torch.float16, torch.bfloat16, torch.float32]
    if device == "cpu":
        dtypes = [torch.float32] if quick else [torch.float32, torch.bfloat16]
    found: list[Case] = []
    batch, side = (64, 128) if gpu else ((1, 16) if quick else (8, 128))
    found += [telu(device, (batch, 64, side, side), dtype) for dtype in dtypes]
    batch, side = (16, 128) if gpu else ((1, 16) if quick else (1, 128))
    mixed = dtypes if gpu else dtypes[:1]
    found += [window_mix(device, batch, 128, 4, side, dtype) for dtype in mixed]
    rows, columns = (64, 1 << 20) if gpu else ((8, 1 << 10) if quick else (16, 1 << 18))
    found += [dispersive(device, rows, columns, dtype) for dtype in mixed]
    many = (16384, 65536) if gpu else ((256,) if quick else (4096, 16384))
    found += [dispersive(device, n, 64, torch.float32, peer=n <= many[0]) for n in many]
    if gpu:
        found.append(telu(device, (batch, 256, side, side), torch.float16, channels_last=True))
        found.append(telu(device, (4, 64, 64, 64), torch.float16))
        found.append(window_mix(device, 1, 128, 4, 64, torch.float16))
        found.append(dispersive(device, 8, 512, torch.float32))
    return found


def telu(
    device: str,
    shape: Sequence[int],
    dtype: torch.dtype,
    channels_last: bool = False,
) -> Case:
    """TeLU: x read and y written forward, x and dy read and dx written backward."""

    def inputs() -> tuple[Tensor]:
        x = torch.randn(*shape, device=device).to(dtype)
        return (x.contiguous(memory_format=torch.channels_last) if channels_last else x,)

    def autocast(x: Tensor) -> Tensor:
        with torch.autocast(device, dtype):
            return literal_telu(x)

    size = math.prod(shape) * SIZES[dtype]
    label = "x".join(map(str, shape)) + (" channels_last" if channels_last else "")
    providers: dict[str, Provider] = {EAGER: literal_telu}
    if dtype in HALF and device == "cuda":
        providers["eager, autocast"] = autocast
    providers |= {COMPILED: compiled(literal_telu), OURS: kernels.telu}
    return Case("telu", dtype, label, inputs, providers, (2 * size, 3 * size))


def window_mix(
    device: str,
    batch: int,
    channels: int,
    heads: int,
    side: int,
    dtype: torch.dtype,
) -> Case:
    """Window mixing beside unfold, matrix product and fold."""

    def inputs() -> tuple[Tensor, Tensor]:
        logits = torch.randn(batch, heads * 81, side, side, device=device).to(dtype)
        return logits, torch.randn(batch, channels, side, side, device=device).to(dtype)

    area = batch * side * side * SIZES[dtype]
    logits, values = heads * 81 * area, channels * area
    label = f"{batch}x{channels}x{side}x{side}, {heads} heads"
    providers: dict[str, Provider] = {
        EAGER: literal_window_mix,
        COMPILED: compiled(literal_window_mix),
        "convolution": kernels.window_mix_convolution,
        OURS: kernels.window_mix,
    }
    moved = logits + 2 * values, 2 * logits + 3 * values
    return Case("window_mix", dtype, label, inputs, providers, moved)


def dispersive(
    device: str,
    rows: int,
    columns: int,
    dtype: torch.dtype,
    peer: bool = True,
) -> Case:
    """InfoNCE of squared distances; many rows are bound by arithmetic, few by memory.

    Many rows take a product for each pair forward, and again with one more backward.
    """

    def inputs() -> tuple[Tensor]:
        return (torch.randn(rows, columns, device=device).to(dtype),)

    few = rows <= 64
    size = rows * columns * SIZES[dtype]
    literal = literal_few if few else literal_many
    providers: dict[str, Provider] = {EAGER: literal, COMPILED: compiled(literal)} if peer else {}
    providers |= {OURS: kernels.dispersive_loss}
    flop = None if few else (rows * rows * columns, 3 * rows * rows * columns)
    name = f"dispersive_loss, {'few' if few else 'many'} rows"
    return Case(name, dtype, f"{rows}x{columns}", inputs, providers, (size, 2 * size), flop)


def literal_few(h: Tensor) -> Tensor:
    """The published form: torch.pdist of every pair of rows."""
    h = h.float()
    exponent = torch.pdist(h).square() / (-0.8 * h.shape[1])
    return exponent.exp().mean().log()


def literal_many(h: Tensor) -> Tensor:
    """The form for rows that torch.pdist cannot take: the whole matrix of distances [N, N]."""
    h = h.float()
    n, d = h.shape
    norms = h.square().sum(1)
    distance = (norms[:, None] + norms - 2 * h @ h.T) / d
    own = torch.eye(n, dtype=torch.bool, device=h.device)
    exponent = (distance / -0.8).masked_fill(own, -math.inf)
    return torch.logsumexp(exponent.flatten(), 0) - math.log(n * (n - 1))


def compiled(function: Provider) -> Provider:
    """Compile at the first call, for the shape it gets."""
    made: list[Any] = []

    def call(*inputs: Tensor) -> Tensor:
        if not made:
            made.append(torch.compile(function, dynamic=False))
        return made[0](*inputs)

    return call
