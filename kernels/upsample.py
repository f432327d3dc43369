"""Maps of several sizes enlarged to one, side by side: bilinear with aligned corners.

Left to torch.compile, what computes a map is fused into its enlargement and computed again at each
of the four pixels an output pixel reads, and the concatenation is a copy more; here a map is read
as it was stored and written to where it is wanted. For inference: it has no derivative.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.checks import empty_joined, floating, refuse_derivative, same_device


def upsample_concat(maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Return the maps' channels one after the other, each enlarged to ``size``.

    Args:
        maps: [N, C_i, h_i, w_i] of one dtype, on one device.
        size: (H, W).

    Returns:
        [N, sum of C_i, H, W] in the dtype and memory format of the first map. Interpolated in
        float32 and rounded once.

    Raises:
        TypeError: Not floating point, or of several dtypes.
        ValueError: No maps, or of several batch sizes or devices.
    """
    for index, each in enumerate(maps):
        floating(f"maps[{index}]", each, 4)
    if not maps or len({x.shape[0] for x in maps}) > 1:
        shapes = [list(x.shape) for x in maps]
        raise ValueError(f"maps are {shapes}; expected at least one, all of one batch size")
    if len({x.dtype for x in maps}) > 1:
        raise TypeError(f"maps are {[x.dtype for x in maps]}; expected one dtype: convert with .to")
    same_device(**{f"maps[{i}]": x for i, x in enumerate(maps)})
    joined: Tensor = torch.ops.medisseg.upsample_concat(list(maps), list(size))
    return joined


torch.library.define("medisseg::upsample_concat", "(Tensor[] maps, SymInt[] size) -> Tensor")


def forward(maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """The same in PyTorch's own operators: maps [N, C, h, w] -> [N, sum of C, *size]."""
    out, first = empty_joined(maps, size), 0
    for x in maps:
        same = list(x.shape[2:]) == list(size)
        large = x if same else F.interpolate(x, list(size), mode="bilinear", align_corners=True)
        out[:, first : first + x.shape[1]] = large
        first += x.shape[1]
    return out


torch.library.impl("medisseg::upsample_concat", "cpu", forward)


@torch.library.register_fake("medisseg::upsample_concat")
def _(maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    return empty_joined(maps, size)


@torch.library.impl("medisseg::upsample_concat", "cuda")
def _(maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    from kernels.triton_ops import upsample as gpu

    if gpu.takes(maps):
        return gpu.forward(maps, size, empty_joined(maps, size))
    return forward(maps, size)


refuse_derivative(
    "medisseg::upsample_concat",
    "a derivative of kernels.upsample_concat, which is for inference; F.interpolate and torch.cat "
    "have one",
)
