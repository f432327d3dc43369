"""Arrays of any library as the frame extension takes them: numpy, or memory of a CUDA device.

Nothing here copies: a numpy array passes as it is, others through DLPack or
``__cuda_array_interface__``. Results on a GPU are PyTorch tensors, since PyTorch owns the memory.
"""

from __future__ import annotations

import importlib
import operator
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

    from kernels._frames import DeviceArray

BUILD = "pip install -e . --no-build-isolation"
LARGEST_SIDE = 16384  # pixels, csrc/image.h
CUDA_DEVICES = (2, 13)  # DLPack's kDLCUDA and kDLCUDAManaged

Size = tuple[int, int]
# A numpy array on the CPU; on a GPU a PyTorch tensor, or what shares its memory like one.
Array: TypeAlias = Any


def extension() -> ModuleType:
    """Return kernels._frames, or raise ImportError with the command that builds it."""
    try:
        return importlib.import_module("kernels._frames")
    except ImportError as error:
        raise ImportError(
            f"the frame extension does not load ({error}); build it in the checkout: {BUILD}"
        ) from error


def view(value: Array, name: str) -> Array:
    """Return a numpy array or a DeviceArray over the memory of ``value``.

    Raises:
        TypeError: ``value`` is no array, or one that cannot be shared (it needs a gradient, say).
    """
    if isinstance(value, np.ndarray):
        return value
    try:
        if _on_gpu(value):
            return _device_array(value)
        if hasattr(value, "__dlpack__"):
            return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{name} cannot be shared: {error}; expected a plain array") from error
    raise TypeError(
        f"{name} is {type(value).__name__}; expected a numpy array, or one with __dlpack__ or "
        "__cuda_array_interface__"
    )


def empty_like(value: Array, shape: tuple[int, ...], dtype: npt.DTypeLike, stream: object) -> Array:
    """Return a new array on the device of ``value`` (numpy, or a tensor for a DeviceArray)."""
    if isinstance(value, np.ndarray):
        return np.empty(shape, dtype)
    import torch

    device = value.owner.device
    # The allocator must know the stream that will use the memory.
    with torch.cuda.stream(_torch_stream(stream_of(value, stream), device)):
        return torch.empty(shape, dtype=getattr(torch, np.dtype(dtype).name), device=device)


def stream_of(value: Array, stream: object) -> int:
    """Return the CUDA stream's handle: the given one, or PyTorch's current one; 0 on the CPU.

    Args:
        value: What :func:`view` returned.
        stream: None, a handle (int), or an object with ``cuda_stream`` (PyTorch) or ``ptr`` (CuPy).
    """
    if isinstance(value, np.ndarray):
        return 0
    if stream is None:
        import torch

        return torch.cuda.current_stream(value.owner.device).cuda_stream
    handle = getattr(stream, "cuda_stream", getattr(stream, "ptr", stream))
    if not isinstance(handle, int) or handle < 0:
        raise TypeError(f"stream is {stream!r}; expected a CUDA stream or its handle")
    return handle


def read(scalar: torch.Tensor, stream: int) -> int:
    """Return a tensor's one integer after the stream's work is done."""
    import torch

    with torch.cuda.stream(_torch_stream(stream, scalar.device)):
        return int(scalar.item())


def _torch_stream(handle: int, device: torch.device) -> torch.cuda.Stream:
    """PyTorch's object for a stream; it takes handle 0 for "make a new one"."""
    import torch

    if handle == 0:
        return torch.cuda.default_stream(device)
    return torch.cuda.ExternalStream(handle, device)


def checked_size(size: Size) -> Size:
    """Return (height, width) as integers within the limits."""
    try:
        height, width = (operator.index(side) for side in size)
    except (TypeError, ValueError) as error:
        raise TypeError(f"size is {size!r}; expected (height, width), integers") from error
    if not (1 <= height <= LARGEST_SIDE and 1 <= width <= LARGEST_SIDE):
        raise ValueError(f"size is {size!r}; expected sides of 1 to {LARGEST_SIDE} pixels")
    return height, width


def _on_gpu(value: object) -> bool:
    device = getattr(value, "__dlpack_device__", None)
    if device is not None:
        return int(device()[0]) in CUDA_DEVICES
    return hasattr(value, "__cuda_array_interface__")


def _device_array(value: Array) -> DeviceArray:
    import torch

    tensor = value
    if not isinstance(value, torch.Tensor):
        shares = hasattr(value, "__dlpack__")
        tensor = torch.from_dlpack(value) if shares else torch.as_tensor(value)
    if tensor.requires_grad:
        raise BufferError("it requires a gradient, use tensor.detach()")
    size = tensor.element_size()
    shared: DeviceArray = extension().DeviceArray(
        tensor.data_ptr(),
        str(tensor.dtype).removeprefix("torch."),
        list(tensor.shape),
        [stride * size for stride in tensor.stride()],
        tensor,
    )
    return shared
