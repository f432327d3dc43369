"""The pictures in a run folder: curves, and predictions on a few validation images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from medisseg.colors import FALSE, FOUND, MISSED
from medisseg.config import TrainConfig
from medisseg.data import augment
from medisseg.training.batches import Arrays

SHOWN = 6


def curves(history: list[dict[str, float]], path: Path) -> None:
    """Draw loss, validation scores and the terms' shares of the gradient by epoch, as PNG."""
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    shares = [name for name in history[-1] if name.startswith("share_")] if history else []
    figure = Figure(figsize=(13.5 if shares else 9, 3.4), layout="constrained")
    left, right, *third = figure.subplots(1, 3 if shares else 2)
    panels: list[tuple[Axes, tuple[str, ...], str]] = [
        (left, ("train_loss", "val_loss"), "loss"),
        (right, ("val_dice", "val_iou"), "score"),
    ]
    for axis in third:
        panels.append((axis, tuple(shares), "share of the gradient at the encoder"))
        axis.set_ylim(0, 1)
    for axis, names, label in panels:
        for name in names:
            points = [(row["epoch"], row[name]) for row in history if name in row]
            if points:
                axis.plot(
                    *zip(*points, strict=True),
                    label=name.removeprefix("share_"),
                    marker="." if len(points) < 9 else "",
                )
        axis.set_xlabel("epoch")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    right.set_ylim(0, 1)
    figure.savefig(path, dpi=100, format="png")


@torch.no_grad()
def samples(network: nn.Module, arrays: Arrays, config: TrainConfig) -> np.ndarray:
    """Return a few validation images above truth and prediction, uint8 RGB [2 H, few W, 3].

    Truth and prediction in one picture: each pixel has the colour of
    :mod:`medisseg.colors` for found, missed or false.
    """
    chosen = np.linspace(0, len(arrays) - 1, min(SHOWN, len(arrays))).astype(int).tolist()
    batch = arrays[chosen]
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    inputs = augment.normalize(batch["image"].float() / 255, config.input).to(device)
    predicted = labels(network(inputs).float()).cpu()
    network.train(was_training)
    rows = [
        np.concatenate([image.permute(1, 2, 0).numpy(), compare(truth, found)], axis=0)
        for image, truth, found in zip(batch["image"], batch["mask"], predicted, strict=True)
    ]
    return np.concatenate(rows, axis=1)


def labels(logits: Tensor) -> Tensor:
    """Return the class of every pixel, uint8 [N, H, W], from logits [N, K, H, W]."""
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0).to(torch.uint8)
    return logits.argmax(1).to(torch.uint8)


def compare(truth: Tensor, predicted: Tensor) -> np.ndarray:
    """Return truth against prediction as uint8 RGB [H, W, 3]."""
    picture = np.zeros((*truth.shape, 3), np.uint8)
    true, found = truth.numpy(), predicted.numpy()
    picture[(true > 0) & (true == found)] = FOUND
    picture[(true > 0) & (true != found)] = MISSED
    picture[(true == 0) & (found > 0)] = FALSE
    return picture
