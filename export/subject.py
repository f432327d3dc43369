"""The network that an engine is built from, as the truth that the engine is held to."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.traits import Traits
from export.verify import Array, Image


@dataclass(frozen=True)
class Subject:
    """A checkpoint's network and what the engine of it will be.

    Attributes:
        model: The PyTorch network, whole and in evaluation mode.
        info: Its checkpoint's header.
        path: The checkpoint file.
        traits: What the engine will be.
    """

    model: Any
    info: Any
    path: Path
    traits: Traits

    def answer(self, image: Image) -> tuple[Array, None]:
        """Return the network's logits float32 [1, K, h, w] of a uint8 RGB image [H, W, 3]."""
        import torch

        batch = torch.from_numpy(self.traits.convention.preprocess(image)[None])
        with torch.inference_mode():
            return self.model(batch).numpy(), None


def open_subject(checkpoint: str | Path, traits: Traits | None = None, **changes: Any) -> Subject:
    """Open a checkpoint.

    Args:
        checkpoint: File or packaged name.
        traits: Of the engine; None takes the checkpoint's own.
        **changes: Fields of :class:`Traits`; "size" is the convention's.
    """
    from medisseg.checkpoint import load_checkpoint, resolve

    model = load_checkpoint(checkpoint, device="cpu").eval()
    info = model.info
    assert info is not None
    if traits is None:
        size = changes.pop("size", None) or info.convention.size
        convention = dataclasses.replace(info.convention, size=size)
        traits = Traits(convention, info.threshold, info.classes, **changes)
    return Subject(model, info, resolve(checkpoint), traits)
