"""Networks to compare with, MONAI's, behind the interface of ours.

The widths are the original papers': U-Net (Ronneberger et al. 2015) and Attention U-Net (Oktay et
al. 2018) start with 64 channels, U-Net++ (Zhou et al. 2018) with 32, nnU-Net's DynUNet (Isensee et
al. 2021: seven levels at 256 x 256, instance norm, leaky ReLU) with 32. ``unet-r50`` is a U-Net on
the whole ResNet-50 (MONAI's FlexibleUNet), which can start from the same ImageNet weights as
``medisseg-r50``. All have one stage and one map; the others start from random weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from medisseg.checkpoint import Checkpoint, new_checkpoint
from medisseg.errors import UserError
from medisseg.model.output import TrainingOutput
from medisseg.model.pretrained import find_weights, load_encoder_weights

# Name -> channels of the first level; None: as the encoder's.
BASELINES: dict[str, int | None] = {
    "unet": 64,
    "unetpp": 32,
    "attention-unet": 64,
    "dynunet": 32,
    "unet-r50": None,
}
LARGEST = 512  # channels of DynUNet's deep levels


class Baseline(nn.Module):
    """A network of somebody else's with the calls of :class:`~medisseg.model.network.Network`.

    Args:
        network: [N, 3, H, W] -> logits [N, K, H, W], or a list whose first entry they are.
        classes: Logit maps K.
        multiple: Sides that are no multiple of this many pixels are padded and cropped back.
        encoder: Dotted name of the network's encoder, which trains at a rate of its own; "": none.
    """

    stage = 2

    def __init__(self, network: nn.Module, classes: int, multiple: int, encoder: str = "") -> None:
        super().__init__()
        self.network, self.classes, self.multiple = network, classes, multiple
        self.encoder_prefix = f"network.{encoder}." if encoder else ""
        self.info: Checkpoint | None = None

    def forward(self, x: Tensor) -> Tensor | TrainingOutput:
        """[N, 3, H, W] -> logits [N, K, H, W]; in training a ``TrainingOutput`` of them."""
        height, width = x.shape[-2:]
        bottom, right = -height % self.multiple, -width % self.multiple
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom), mode="replicate")
        logits, *others = (map[..., :height, :width] for map in self.maps(x))
        if not self.training:
            return logits
        return TrainingOutput(logits, None, None, None, {}, tuple(others))

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return the mask's logits [N, K, H, W], then what deep supervision also trains."""
        answer = self.network(x)
        return [answer[0] if isinstance(answer, list) else answer]


def create_baseline(
    name: str,
    stage: int = 2,
    classes: int = 1,
    encoder_weights: str | Path | None = None,
    **options: Any,
) -> Baseline:
    """Build a baseline by name; the arguments are those of ``create_model``.

    Raises:
        UserError: Stage 1 is asked for, or encoder weights of a network without an encoder, or an
            option other than ``width``.
    """
    width = BASELINES[name]
    if stage != 2:
        raise UserError(f"{name} has one stage; train it with stages=[2]")
    if width is None:
        if options:
            raise UserError(f"{name} has no options; got {', '.join(options)}")
        model = Baseline(_unet_r50(classes), classes, 32, "encoder")
        if encoder_weights is not None:
            encoder = model.network.get_submodule("encoder")
            load_encoder_weights(encoder, "r50", encoder_weights)
    else:
        check_weights(name, encoder_weights)
        width = options.pop("width", width)
        if options:
            raise UserError(f"{name} has the option width alone; got {', '.join(options)}")
        if not isinstance(width, int) or width < 4 or width % 2:
            raise UserError(f"width is {width!r}; expected an even number of channels, at least 4")
        options = {"width": width}
        model = Baseline(_network(name, classes, width), classes, 128 if name == "dynunet" else 16)
    model.info = new_checkpoint(name, stage, classes, options)
    return model


def check_weights(name: str, encoder_weights: str | Path | None) -> None:
    """Refuse encoder weights that a baseline does not take, or that are not there."""
    if encoder_weights is None:
        return
    if BASELINES[name] is not None:
        raise UserError(f"{name} starts from random weights; leave encoder_weights out")
    find_weights("r50", encoder_weights)


def _network(name: str, classes: int, width: int) -> nn.Module:
    from monai.networks.nets import AttentionUnet, BasicUNet, BasicUNetPlusPlus, DynUNet

    levels = tuple(width * 2**level for level in range(5))
    if name == "attention-unet":
        return AttentionUnet(2, 3, classes, levels, (2, 2, 2, 2))
    if name == "dynunet":
        filters = [min(width * 2**level, LARGEST) for level in range(7)]
        return DynUNet(
            2, 3, classes, [3] * 7, [1, *[2] * 6], [2] * 6, filters=filters,
            norm_name=("instance", {"affine": True}),
        )  # fmt: skip
    kind = {"unet": BasicUNet, "unetpp": BasicUNetPlusPlus}[name]
    act, norm = ("ReLU", {"inplace": True}), ("batch", {"affine": True})
    network: nn.Module = kind(2, 3, classes, features=(*levels, width), act=act, norm=norm)
    return network


def _unet_r50(classes: int) -> nn.Module:
    from monai.networks.nets import FlexibleUNet

    return FlexibleUNet(3, classes, "resnet50", pretrained=False, spatial_dims=2)
