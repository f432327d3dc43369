"""What makes Med-DisSeg fast: operators with a CPU path, and the extension for frames.

Importing this package needs no GPU, no Triton and no compiled extension (``kernels.frames``).
"""

from kernels.dispersive import dispersive_loss, dispersive_loss_reference
from kernels.telu import telu, telu_reference
from kernels.window_mix import window_mix, window_mix_convolution

__all__ = [
    "dispersive_loss",
    "dispersive_loss_reference",
    "telu",
    "telu_reference",
    "window_mix",
    "window_mix_convolution",
]
