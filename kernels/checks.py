"""What the operators share: their errors, the dtype they compute in, the order of memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad


class Context(Protocol):
    """What PyTorch hands to the functions that differentiate an operator."""

    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep tensors for the gradient."""


def floating(name: str, tensor: Tensor, rank: int | None = None) -> None:
    """Refuse what is not a floating-point tensor of the given rank.

    Raises:
        TypeError: Not a tensor, or not of a floating-point dtype.
        ValueError: Another rank.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is {type(tensor).__name__}; expected a torch.Tensor")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} is {tensor.dtype}; expected a float dtype: {name}.float()")
    if rank is not None and tensor.ndim != rank:
        shape = list(tensor.shape)
        raise ValueError(f"{name} has shape {shape}; expected {rank} dimensions: reshape it")


def same_device(**tensors: Tensor) -> None:
    """Refuse tensors on different devices."""
    devices = {name: tensor.device for name, tensor in tensors.items()}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"got {listed}; expected one device: move one with .to()")


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 where one of the tensors is, else float32."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def wide(tensor: Tensor) -> Tensor:
    """Return half-precision values as float32, others as they are; of any shape."""
    return tensor.to(compute_dtype(tensor))


def one_order(*tensors: Tensor) -> bool:
    """Whether tensors of one shape are dense in memory, without gaps, in the same order.

    Any permutation of the dimensions will do; the strides of dimensions of size 1 say nothing.
    """
    strides = [
        tuple(stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1)
        for x in tensors
    ]
    sizes = [size for size in tensors[0].shape if size > 1]
    expected = 1
    for stride, size in sorted(zip(strides[0], sizes, strict=True)):
        if stride != expected:
            return False
        expected *= size
    return len(set(strides)) == 1


def empty_joined(maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Return memory [N, sum of C, *size] for maps [N, C, h, w] that are joined by channels."""
    first = maps[0]
    last = first.is_contiguous(memory_format=torch.channels_last)
    form = torch.channels_last if last else torch.contiguous_format
    shape = (first.shape[0], sum(x.shape[1] for x in maps), *size)
    return torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=form)


def once_differentiable(backward: str, operator: str, other: str) -> None:
    """Let a derivative of the operator ``backward`` raise; without a formula it would be zero."""
    refuse_derivative(
        backward,
        f"a second derivative of kernels.{operator}, which is once differentiable; "
        f"kernels.{other} can be differentiated again",
    )


def refuse_derivative(operator: str, message: str) -> None:
    """Let a derivative of ``operator`` raise RuntimeError."""

    def refuse(ctx: object, *gradients: Tensor) -> None:
        raise RuntimeError(message)

    torch.library.register_autograd(operator, refuse)


def reverse_mode(operator: str, other: str, *tensors: Tensor) -> None:
    """Refuse torch.func.grad and forward mode: PyTorch's registration would raise or answer zero.

    Raises:
        NotImplementedError: Within torch.func.grad, vjp, jvp or jacobians, or of dual numbers.
    """
    if torch.compiler.is_compiling():
        return
    layer = torch._C._functorch.peek_interpreter_stack()
    transformed = layer is not None and layer.key() != torch._C._functorch.TransformType.Vmap
    if transformed or any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise NotImplementedError(
            f"kernels.{operator} within torch.func's transforms or forward mode; use "
            f"kernels.{other} there, or torch.autograd.grad"
        )
