"""Fused operators for CPU and GPU, and the frames in C++ and CUDA.

Every operator is registered with torch.library, so that autograd, autocast, torch.compile and
torch.export take it as their own. Triton is imported at the first call on a GPU.
"""

from kernels.dispersive import dispersive_loss, dispersive_loss_reference
from kernels.spatial_gate import spatial_gate
from kernels.telu import telu, telu_reference
from kernels.upsample import upsample_concat
from kernels.window_mix import window_mix, window_mix_convolution

__all__ = [
    "dispersive_loss",
    "dispersive_loss_reference",
    "spatial_gate",
    "telu",
    "telu_reference",
    "upsample_concat",
    "window_mix",
    "window_mix_convolution",
]
