"""Dispersive loss: pushes representations apart (Wang and He 2025, "Diffuse and Disperse").

Four variants over the N rows of h, means over the pairs i != j:

    infonce_l2       log(mean exp(-D / tau) + epsilon),  D = ||h_i - h_j||^2 / d
    infonce_cosine   log(mean exp(-D / tau) + epsilon),  D = 1 - cos(h_i, h_j)
    hinge            mean max(0, margin - sqrt(D))^2,    D = ||h_i - h_j||^2 / d
    covariance       sum of the squared off-diagonal entries of the 1 / (N - 1) covariance

InfoNCE is a log-sum-exp, never exp and then log, so it has a gradient at every feature scale
(Med-DisSeg Eq. 3 as released has none). Up to 64 rows go through their centred N x N Gram matrix,
more through tiles of pairs: memory is O(N d), nothing of N x N, d x d or N x N x d is formed.
Distances below the rounding of their rows' norms count as zero.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels import pairs
from kernels.checks import Context, compute_dtype, floating, once_differentiable, reverse_mode, wide
from kernels.pairs import FEW, Options

if TYPE_CHECKING:
    from typing_extensions import Unpack

Values = tuple[str, float, float, bool, bool, float]  # the fields of Options
VARIANTS = ("infonce_l2", "infonce_cosine", "hinge", "covariance")


def dispersive_loss(
    h: Tensor,
    variant: str = "infonce_l2",
    tau: float = 0.8,
    margin: float = 1.0,
    normalize: bool = True,
    include_diagonal: bool = False,
    epsilon: float = 1e-8,
) -> Tensor:
    """Return the dispersive loss of the rows of ``h``; deterministic, once differentiable.

    Args:
        h: [N, d], floating point. NaN or infinity in, NaN out. A row of zeros has cosine 0 with
            every other and no gradient; identical rows have none between them, by symmetry.
        variant: "infonce_l2", "infonce_cosine", "hinge" or "covariance".
        tau: Temperature of the InfoNCE variants, more than 0.
        margin: Distance under which the hinge pushes apart, more than 0.
        normalize: Divide squared distances by d (infonce_l2 and hinge).
        include_diagonal: Count the N self pairs, whose distance is 0, in the mean, as the
            official code does; InfoNCE is then at least log(1 / N). Covariance has no pairs.
        epsilon: Floor inside InfoNCE's logarithm (Eq. 3); 0 keeps the gradient alive however
            far apart the rows are.

    Returns:
        A scalar, float32 (float64 for float64 input). 0 with zero gradient where N < 2.

    Raises:
        TypeError: ``h`` is not a floating-point tensor.
        ValueError: ``h`` is not of rank 2, or an option is out of range.
        NotImplementedError: Within torch.func.grad or forward mode.

    Example:
        >>> h = torch.eye(4).requires_grad_()
        >>> dispersive_loss(h, tau=0.5).item()  # every D is 2 / 4
        -1.0
    """
    options = _options(h, variant, tau, margin, normalize, include_diagonal, epsilon)
    reverse_mode("dispersive_loss", "dispersive_loss_reference", h)
    loss: Tensor = torch.ops.medisseg.dispersive(h, *options)[0]
    return loss


def dispersive_loss_reference(
    h: Tensor,
    variant: str = "infonce_l2",
    tau: float = 0.8,
    margin: float = 1.0,
    normalize: bool = True,
    include_diagonal: bool = False,
    epsilon: float = 1e-8,
) -> Tensor:
    """The definition, pair by pair: [pairs, d] or [d, d] in memory; arguments as above."""
    _options(h, variant, tau, margin, normalize, include_diagonal, epsilon)
    x = wide(h)
    n, d = x.shape
    if n < 2:
        return x.new_zeros(()) + 0 * torch.nan_to_num(x).sum()
    if variant == "covariance":
        centred = x - x.mean(0)
        covariance = centred.T @ centred / (n - 1)
        return covariance.square().sum() - covariance.diagonal().square().sum()
    i, j = torch.triu_indices(n, n, 1, device=h.device)
    count = n * n if include_diagonal else n * (n - 1)
    if variant == "infonce_cosine":
        norm = x.norm(dim=1, keepdim=True)
        zero = norm <= pairs.SMALLEST_NORM
        unit = torch.where(zero, 0.0, x / torch.where(zero, 1.0, norm))
        distance = 1 - (unit[i] * unit[j]).sum(1)
    else:
        distance = (x[i] - x[j]).square().sum(1) / (d if normalize else 1)
    if variant == "hinge":
        apart = distance > 0
        root = torch.where(distance == 0, 0.0, torch.where(apart, distance, 1.0 + distance).sqrt())
        total = 2 * (margin - root).clamp(min=0).square().sum()
        return (total + (n * margin**2 if include_diagonal else 0.0)) / count
    log_sum = torch.logsumexp(-distance / tau, 0) + math.log(2)
    if include_diagonal:
        log_sum = torch.logaddexp(log_sum, log_sum.new_full((), math.log(n)))
    floor = math.log(epsilon) if epsilon else -math.inf
    return torch.logaddexp(log_sum - math.log(count), log_sum.new_full((), floor))


def _options(
    h: Tensor,
    variant: str,
    tau: float,
    margin: float,
    normalize: bool,
    include_diagonal: bool,
    epsilon: float,
) -> Options:
    floating("h", h, 2)
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; expected one of {', '.join(VARIANTS)}")
    for name, value in (("tau", tau), ("margin", margin)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; expected a positive finite number")
    if not 0 <= epsilon < 1:
        raise ValueError(f"epsilon is {epsilon}; expected 0 <= epsilon < 1, such as 1e-8")
    if h.shape[1] == 0:
        raise ValueError(f"h has shape {list(h.shape)}; expected at least one column")
    return Options(variant, float(tau), float(margin), normalize, include_diagonal, float(epsilon))


OPTIONS = (
    "str variant, float tau, float margin, bool normalize, bool include_diagonal, float epsilon"
)
torch.library.define("medisseg::dispersive", f"(Tensor h, {OPTIONS}) -> (Tensor, Tensor)")
torch.library.define(
    "medisseg::dispersive_backward",
    f"(Tensor gradient, Tensor h, Tensor loss, Tensor matrix, {OPTIONS}) -> Tensor",
)


def forward(h: Tensor, *values: Unpack[Values]) -> tuple[Tensor, Tensor]:
    """The loss and, of few rows, the matrix [N, N] whose product with h is the gradient."""
    options = Options(*values)
    if len(h) < 2:
        return wide(h).new_zeros(()), wide(h).new_zeros(0, 0)
    if len(h) <= FEW:
        return pairs.few_forward(h, options)
    return pairs.many_forward(h, options), wide(h).new_zeros(0, 0)


def backward(
    gradient: Tensor, h: Tensor, loss: Tensor, matrix: Tensor, *values: Unpack[Values]
) -> Tensor:
    """The gradient by h [N, D], contiguous; ``gradient`` and ``loss`` are scalars."""
    options = Options(*values)
    if len(h) < 2:
        return h.new_zeros(h.shape)
    if len(h) <= FEW:
        return pairs.few_backward(gradient, h, matrix, options)
    return pairs.many_backward(gradient, h, loss, options)


torch.library.impl("medisseg::dispersive", "cpu", forward)
torch.library.impl("medisseg::dispersive_backward", "cpu", backward)


@torch.library.register_fake("medisseg::dispersive")
def _(h: Tensor, *options: Unpack[Values]) -> tuple[Tensor, Tensor]:
    n, dtype = h.shape[0], compute_dtype(h)
    side = n if 2 <= n <= FEW else 0
    return h.new_empty((), dtype=dtype), h.new_empty(side, side, dtype=dtype)


@torch.library.register_fake("medisseg::dispersive_backward")
def _(
    gradient: Tensor, h: Tensor, loss: Tensor, matrix: Tensor, *options: Unpack[Values]
) -> Tensor:
    return h.new_empty(h.shape)


@torch.library.impl("medisseg::dispersive", "cuda")
def _(h: Tensor, *values: Unpack[Values]) -> tuple[Tensor, Tensor]:
    from kernels.triton_ops import dispersive as gpu

    return gpu.forward(h, Options(*values)) if gpu.takes(h, values[0]) else forward(h, *values)


@torch.library.impl("medisseg::dispersive_backward", "cuda")
def _(gradient: Tensor, h: Tensor, loss: Tensor, matrix: Tensor, *values: Unpack[Values]) -> Tensor:
    from kernels.triton_ops import dispersive as gpu

    if gpu.takes(h, values[0]):
        return gpu.backward(gradient, h, loss, matrix, Options(*values))
    return backward(gradient, h, loss, matrix, *values)


class OptionsContext(Context):
    """With the options of the forward pass."""

    options: tuple[object, ...]


def _save(
    ctx: OptionsContext, inputs: tuple[Tensor, Unpack[Values]], output: tuple[Tensor, Tensor]
) -> None:
    h, *options = inputs
    ctx.options = tuple(options)
    ctx.save_for_backward(h, *output)


def _differentiate(
    ctx: OptionsContext, gradient: Tensor, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    found = torch.ops.medisseg.dispersive_backward(gradient, *ctx.saved_tensors, *ctx.options)
    return found, *[None] * len(ctx.options)


torch.library.register_autograd("medisseg::dispersive", _differentiate, setup_context=_save)
once_differentiable("medisseg::dispersive_backward", "dispersive_loss", "dispersive_loss_reference")
