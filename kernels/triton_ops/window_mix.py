"""CDFA window mixing on a GPU: the 5 x 5 filters of every position and head, then their 25 taps.

Forward, one kernel turns the nine softmaxes around a position into its filter (25 numbers where the
logits have 81; float16 for half-precision values, as they lie within 0 to 9) and a second one
applies the filters: with channels innermost four positions of a row a thread, which share the eight
values that their five taps read. Backward, in float32, the same two give the
values' gradient; the filters' gradient is 25 products over channels, from which the last kernel
gathers the logits'. Nothing is scattered, so nothing is atomic, and a softmax is computed once a
position, not once a channel. Logits, values and outputs come with their strides: any layout is read
in place; logits are read best with positions innermost, values with channels innermost. Loops over
taps stay loops: unrolled, their loads are hoisted together and registers spill.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton_ops.launch import DTYPES, device_of, power_of_two

DEEPEST = 32  # channels of a head
PIXELS = 128  # positions a program where there are no channels, one a thread
WARPS = 4
_PAIRS = tl.constexpr(81)
_TAPS = tl.constexpr(25)


def takes(logits: Tensor, values: Tensor) -> bool:
    """Whether the kernels serve these tensors (shapes are checked before)."""
    depth = values.shape[1] * _PAIRS.value // max(logits.shape[1], 1)
    heads = logits.shape[0] * logits.shape[1] // _PAIRS.value
    served = logits.dtype in DTYPES and values.dtype in DTYPES
    return served and values.numel() > 0 and depth <= DEEPEST and heads < 1 << 16


def forward(logits: Tensor, values: Tensor) -> Tensor:
    """Return the mixed values in the layout of ``values`` [N, C, H, W]."""
    out = torch.empty_like(values)
    with device_of(values):
        half = values.dtype != torch.float32
        filters = _filters(logits, torch.float16 if half else torch.float32)
        _apply(filters, values, out, transposed=False)
    return out


def backward(gradient: Tensor, logits: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients by logits and values, each in its own shape and layout."""
    dlogits, dvalues = torch.empty_like(logits), torch.empty_like(values)
    with device_of(values):
        filters = _filters(logits, torch.float32)
        _apply(filters, gradient, dvalues, transposed=True)
        grid, sizes, meta = _tiles(filters, values)
        filters_gradient_kernel[grid](  # into the same memory
            gradient, values, filters, *sizes, *gradient.stride(), *values.stride(), **meta
        )
        grid, sizes, meta = _pixels(logits)
        logits_gradient_kernel[grid](
            filters, logits, dlogits, *sizes, *logits.stride(), *dlogits.stride(), **meta
        )
    return dlogits, dvalues


def _filters(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """W: [B * heads, 25, H * W]."""
    batch, channels, height, width = logits.shape
    shape = batch * channels // _PAIRS.value, _TAPS.value, height * width
    filters = logits.new_empty(shape, dtype=dtype)
    grid, sizes, meta = _pixels(logits)
    filters_kernel[grid](logits, filters, *sizes, *logits.stride(), **meta)
    return filters


def _apply(filters: Tensor, values: Tensor, out: Tensor, transposed: bool) -> None:
    grid, sizes, meta = _tiles(filters, values)
    if values.stride(1) == out.stride(1) == 1:
        height, width, _, depth = sizes
        meta["BLOCK"] = quads_for(meta["DEPTH"], values.dtype == torch.float32 and transposed)
        quads = triton.cdiv(width, 4) * height
        apply_quads_kernel[triton.cdiv(quads, meta["BLOCK"]), grid[1]](
            filters, values, out, *sizes, *_without_channels(values), *_without_channels(out),
            TRANSPOSED=transposed, WHOLE=depth == meta["DEPTH"], **meta,
        )  # fmt: skip
        return
    apply_kernel[grid](
        filters, values, out, *sizes, *values.stride(), *out.stride(), TRANSPOSED=transposed, **meta
    )


def quads_for(depth: int, wide: bool) -> int:
    """Fours of positions a program; ``wide``: half as many, whose addresses fit in registers."""
    return block_for(depth) // (2 if wide else 1)


def _without_channels(x: Tensor) -> tuple[int, int, int]:
    """Strides of images, rows and columns."""
    return x.stride(0), x.stride(2), x.stride(3)


Launch = tuple[tuple[int, int], tuple[int, ...], dict[str, int]]


def _pixels(logits: Tensor) -> Launch:
    """The grid, (height, width, heads) and the compile-time sizes of a kernel without channels."""
    batch, channels, height, width = logits.shape
    heads = channels // _PAIRS.value
    grid = (triton.cdiv(height * width, PIXELS), batch * heads)
    return grid, (height, width, heads), {"BLOCK": PIXELS, "num_warps": WARPS}


def _tiles(filters: Tensor, values: Tensor) -> Launch:
    """The grid, (height, width, heads, depth) and the compile-time sizes of one with channels."""
    batch, channels, height, width = values.shape
    heads = len(filters) // batch
    depth = power_of_two(channels // heads)
    block = block_for(depth)
    grid = (triton.cdiv(height * width, block), batch * heads)
    meta = {"BLOCK": block, "DEPTH": depth, "num_warps": WARPS}
    return grid, (height, width, heads, channels // heads), meta


def block_for(depth: int) -> int:
    """Positions a program: a tile of values [BLOCK, DEPTH] is 8 numbers a thread."""
    return 1024 // max(depth, 16)


@triton.jit
def filters_kernel(
    logits, filters, height, width, heads, lb, lc, lh, lw, BLOCK: tl.constexpr
):  # fmt: skip
    """W[p, d] = sum over q of A[p - q, q, q + d]."""
    y, x, here, batch, head = _place(height, width, heads, BLOCK)
    logits += batch * lb + head * _PAIRS * lc
    probabilities = ()
    for q in tl.static_range(9):
        sy, sx = y - (q // 3 - 1), x - (q % 3 - 1)
        inside = here & _within(sy, sx, height, width)
        at = logits + sy.to(tl.int64) * lh + sx.to(tl.int64) * lw + q * 9 * lc
        probabilities = probabilities + _softmax(at, lc, inside)
    filters += _start(height, width, heads, batch, head, y, x)
    for d in tl.static_range(25):
        weight = tl.zeros((BLOCK,), tl.float32)
        for q in tl.static_range(9):
            # The input k = q + d has a row and a column of the window, 0 to 2.
            low = q // 3 + d // 5 >= 2 and q % 3 + d % 5 >= 2
            if low and q // 3 + d // 5 <= 4 and q % 3 + d % 5 <= 4:
                weight += probabilities[q * 9 + q + d // 5 * 3 + d % 5 - 8]
        stored = weight.to(filters.dtype.element_ty)
        tl.store(filters + d * _area(height, width), stored, mask=here)


@triton.jit
def apply_kernel(
    filters, values, out, height, width, heads, depth, vb, vc, vh, vw, ob, oc, oh, ow,
    TRANSPOSED: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """out[p] = sum over d of W[p, d] v[p + d] or, transposed, of W[p - d, d] v[p - d]."""
    y, x, here, batch, head = _place(height, width, heads, BLOCK)
    values += batch * vb + head * depth * vc
    channel = tl.arange(0, DEPTH)
    mixed = tl.zeros((BLOCK, DEPTH), tl.float32)
    own = filters + _start(height, width, heads, batch, head, y, x)
    for row in range(5):
        for column in range(5):
            dy, dx = row - 2, column - 2
            sy, sx = (y - dy, x - dx) if TRANSPOSED else (y + dy, x + dx)
            inside = here & _within(sy, sx, height, width)
            at = own + (row * 5 + column) * _area(height, width)
            weight = _load(at - (dy * width + dx if TRANSPOSED else 0), inside)
            tile = _tile(values, sy, sx, channel, depth, inside, vc, vh, vw)
            mixed += weight[:, None] * tile
    out += batch * ob + head * depth * oc
    at = out + _offsets(y, x, channel, oc, oh, ow)
    mask = here[:, None] & (channel < depth)[None, :]
    tl.store(at, mixed.to(out.dtype.element_ty), mask=mask)


@triton.jit
def apply_quads_kernel(
    filters, values, out, height, width, heads, depth, vb, vh, vw, ob, oh, ow,
    TRANSPOSED: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """As apply_kernel, for four positions side by side; channels lie side by side too."""
    quad = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y, x = quad // tl.cdiv(width, 4), quad % tl.cdiv(width, 4) * 4
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    channel = tl.arange(0, DEPTH)[None, :]
    place = y.to(tl.int64) * vh + x.to(tl.int64) * vw
    at = values + batch * vb + head * depth + place[:, None] + channel
    own = filters + _start(height, width, heads, batch, head, y, x)
    first = tl.zeros((BLOCK, DEPTH), tl.float32)
    second, third, fourth = first, first, first
    for row in range(5):
        dy = 2 - row if TRANSPOSED else row - 2
        inside_rows = (y < height) & (y + dy >= 0) & (y + dy < height)
        line = at + dy.to(tl.int64) * vh
        taps = own + row * 5 * _area(height, width) + (dy * width if TRANSPOSED else 0)
        for column in tl.static_range(8):
            sx = x + (column - 2)
            inside = inside_rows & (sx >= 0) & (sx < width)
            mask = inside[:, None]
            if not WHOLE:
                mask = mask & (channel < depth)
            tile = _load(line + (column - 2) * vw, mask)
            for j in tl.static_range(4):
                tap = j - column + 4 if TRANSPOSED else column - j
                if tap >= 0 and tap < 5:
                    weight_at = taps + tap * _area(height, width)
                    if TRANSPOSED:
                        weight = _load(weight_at + (column - 2), inside)
                    else:
                        weight = _load(weight_at + j, inside_rows & (x + j < width))
                    product = weight[:, None] * tile
                    if j == 0:
                        first += product
                    elif j == 1:
                        second += product
                    elif j == 2:
                        third += product
                    else:
                        fourth += product
    place = y.to(tl.int64) * oh + x.to(tl.int64) * ow
    to = out + batch * ob + head * depth + place[:, None] + channel
    for j in tl.static_range(4):
        mask = ((y < height) & (x + j < width))[:, None] & (channel < depth)
        mixed = first if j == 0 else second if j == 1 else third if j == 2 else fourth
        tl.store(to + j * ow, mixed.to(out.dtype.element_ty), mask=mask)


@triton.jit
def filters_gradient_kernel(
    gradient, values, dfilters, height, width, heads, depth, gb, gc, gh, gw, vb, vc, vh, vw,
    BLOCK: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """dW[p, d] = g[p] . v[p + d]."""
    y, x, here, batch, head = _place(height, width, heads, BLOCK)
    gradient += batch * gb + head * depth * gc
    values += batch * vb + head * depth * vc
    channel = tl.arange(0, DEPTH)
    own = dfilters + _start(height, width, heads, batch, head, y, x)
    g = _tile(gradient, y, x, channel, depth, here, gc, gh, gw)
    for row in range(5):
        for column in range(5):
            sy, sx = y + (row - 2), x + (column - 2)
            inside = here & _within(sy, sx, height, width)
            tile = _tile(values, sy, sx, channel, depth, inside, vc, vh, vw)
            at = own + (row * 5 + column) * _area(height, width)
            tl.store(at, tl.sum(g * tile, 1), mask=here)


@triton.jit
def logits_gradient_kernel(
    dfilters, logits, dlogits, height, width, heads, lb, lc, lh, lw, db, dc, dh, dw,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """dA[p, q, k] = dW[p + q, k - q]; dlogits = A (dA - sum over k of A dA)."""
    y, x, here, batch, head = _place(height, width, heads, BLOCK)
    logits += batch * lb + head * _PAIRS * lc + y.to(tl.int64) * lh + x.to(tl.int64) * lw
    dlogits += batch * db + head * _PAIRS * dc + y.to(tl.int64) * dh + x.to(tl.int64) * dw
    own = dfilters + _start(height, width, heads, batch, head, y, x)
    for q in range(9):
        qy, qx = q // 3 - 1, q % 3 - 1
        inside = here & _within(y + qy, x + qx, height, width)
        probabilities = _softmax(logits + q * 9 * lc, lc, here)
        slopes = ()
        mean = tl.zeros((BLOCK,), tl.float32)
        for k in tl.static_range(9):
            d = (k // 3 - 1 - qy + 2) * 5 + k % 3 - 1 - qx + 2
            slope = _load(own + d * _area(height, width) + qy * width + qx, inside)
            slopes = slopes + (slope,)
            mean += probabilities[k] * slope
        for k in tl.static_range(9):
            found = probabilities[k] * (slopes[k] - mean)
            tl.store(dlogits + (q * 9 + k) * dc, found.to(dlogits.dtype.element_ty), mask=here)


@triton.jit
def _place(height, width, heads, BLOCK: tl.constexpr):
    """Rows, columns and validity of the program's positions; its image and head."""
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    image = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    here = position < height * width
    return position // width, position % width, here, image.to(tl.int64), head.to(tl.int64)


@triton.jit
def _area(height, width):
    return tl.cast(height, tl.int64) * width  # a height of 1 has no .to


@triton.jit
def _start(height, width, heads, batch, head, y, x):
    """Where the filters of the program's positions start: their tap 0."""
    return (batch * heads + head) * _TAPS * _area(height, width) + y.to(tl.int64) * width + x


@triton.jit
def _within(y, x, height, width):
    return (y >= 0) & (y < height) & (x >= 0) & (x < width)


@triton.jit
def _load(at, mask):
    return tl.load(at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _softmax(at, stride, mask):
    """The nine probabilities of one window output; 0 where the mask is not."""
    logits = ()
    for k in tl.static_range(9):
        logits = logits + (_load(at + k * stride, mask),)
    top = logits[0]
    for k in tl.static_range(1, 9):
        top = tl.maximum(top, logits[k])
    powers = ()
    total = tl.zeros_like(top)
    for k in tl.static_range(9):
        powers = powers + (tl.exp(logits[k] - top),)
        total += powers[k]
    probabilities = ()
    for k in tl.static_range(9):
        probabilities = probabilities + (tl.where(mask, powers[k] / total, 0.0),)
    return probabilities


@triton.jit
def _offsets(y, x, channel, sc, sh, sw):
    place = y.to(tl.int64) * sh + x.to(tl.int64) * sw
    return place[:, None] + (channel.to(tl.int64) * sc)[None, :]


@triton.jit
def _tile(base, y, x, channel, depth, inside, sc, sh, sw):
    """Values [BLOCK, DEPTH] in float32; 0 outside the image."""
    mask = inside[:, None] & (channel < depth)[None, :]
    return _load(base + _offsets(y, x, channel, sc, sh, sw), mask)
