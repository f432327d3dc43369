"""U-Net, U-Net++ and Attention U-Net behind the interface of our networks, for comparison.

The networks are MONAI's; the widths are the original papers': U-Net (Ronneberger et al. 2015) and
Attention U-Net (Oktay et al. 2018) start with 64 channels, U-Net++ (Zhou et al. 2018) with 32.
BatchNorm and ReLU throughout. They have one stage, trained from random weights.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from medisseg.checkpoint import Checkpoint, new_checkpoint
from medisseg.errors import UserError
from medisseg.model.output import TrainingOutput

# Name -> channels of the first level.
BASELINES = {"unet": 64, "unetpp": 32, "attention-unet": 64}


class Baseline(nn.Module):
    """A MONAI network with the calls of :class:`~medisseg.model.network.Network`.

    Args:
        name: One of ``BASELINES``.
        classes: Logit maps.
        width: Channels of the first level; each deeper level has twice as many.
    """

    stage = 2
    multiple = 16

    def __init__(self, name: str, classes: int, width: int) -> None:
        super().__init__()
        self.classes = classes
        self.network = _network(name, classes, width)
        self.info: Checkpoint | None = None

    def forward(self, x: Tensor) -> Any:
        """[N, 3, H, W] -> logits [N, K, H, W]; in training a ``TrainingOutput`` without extras."""
        height, width = x.shape[-2:]
        bottom, right = -height % self.multiple, -width % self.multiple
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom), mode="replicate")
        answer = self.network(x)
        logits = answer[0] if isinstance(answer, list) else answer
        logits = logits[..., :height, :width]
        return TrainingOutput(logits, None, None, None, {}) if self.training else logits


def create_baseline(
    name: str, stage: int = 2, classes: int = 1, encoder_weights: Any = None, **options: Any
) -> Baseline:
    """Build a baseline by name; the arguments are those of ``create_model``.

    Raises:
        UserError: Stage 1 or encoder weights are asked for, or an option other than ``width``.
    """
    if stage != 2:
        raise UserError(f"{name} has one stage; train it with stages=[2]")
    if encoder_weights is not None:
        raise UserError(f"{name} starts from random weights; leave encoder_weights out")
    width = options.pop("width", BASELINES[name])
    if options:
        raise UserError(f"{name} has the option width alone; got {', '.join(options)}")
    if not isinstance(width, int) or width < 4 or width % 2:
        raise UserError(f"width is {width!r}; expected an even number of channels, at least 4")
    model = Baseline(name, classes, width)
    model.info = new_checkpoint(name, stage, classes, {"width": width})
    return model


def _network(name: str, classes: int, width: int) -> nn.Module:
    from monai.networks.nets import AttentionUnet, BasicUNet, BasicUNetPlusPlus

    levels = tuple(width * 2**level for level in range(5))
    if name == "attention-unet":
        return AttentionUnet(2, 3, classes, levels, (2, 2, 2, 2))
    kind = {"unet": BasicUNet, "unetpp": BasicUNetPlusPlus}[name]
    act, norm = ("ReLU", {"inplace": True}), ("batch", {"affine": True})
    return kind(2, 3, classes, features=(*levels, width), act=act, norm=norm)
