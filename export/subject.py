"""The network that an engine is built from, as the truth that the engine is held to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.options import BuildOptions
from export.samples import Frame, frames_from
from export.traits import Traits
from export.verify import Array, Image

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from medisseg.checkpoint import Checkpoint
    from medisseg.model.network import Network


@dataclass(frozen=True)
class Subject:
    """A checkpoint's network and what the engine of it will be.

    Attributes:
        model: The PyTorch network, whole and in evaluation mode.
        info: Its checkpoint's header.
        path: The checkpoint file.
        traits: What the engine will be.
    """

    model: Network
    info: Checkpoint
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
    from medisseg.checkpoint import resolve
    from medisseg.model.loading import load_checkpoint

    model = load_checkpoint(checkpoint, device="cpu").eval()
    info = model.info
    assert info is not None
    if traits is None:
        size = changes.pop("size", None) or info.convention.size
        convention = dataclasses.replace(info.convention, size=size)
        changes |= {"labels": info.labels}
        traits = Traits(convention, info.threshold, info.classes, **changes)
    return Subject(model, info, resolve(checkpoint), traits)


@dataclass(frozen=True)
class Source:
    """What a build starts from, in any precision.

    Attributes:
        name: The checkpoint as it was named.
        subject: Its network.
        network: The network as it runs on patients.
        graph: That network in float32 ONNX.
        frames: What the engine is verified on.
    """

    name: str | Path
    subject: Subject
    network: nn.Module
    graph: onnx.ModelProto
    frames: Sequence[Frame]


def open_source(
    checkpoint: str | Path, options: BuildOptions, say: Callable[[str], None]
) -> Source:
    """Open a checkpoint, export its network, and read what the engine will be verified on.

    Raises:
        UserError: No such checkpoint or data, or the network cannot be exported as asked.
    """
    from export.graph import export_graph
    from medisseg.data.shares import foreground_line
    from medisseg.model.inference import for_inference

    frames = frames_from(options.data, options.images, options.split)
    shares = [float((frame.mask > 0).mean()) for frame in frames if frame.mask is not None]
    if options.data is not None and shares:
        say(f"to verify on: {foreground_line(shares)}")
    subject = open_subject(
        checkpoint, size=options.size, max_batch=options.batch[-1], uncertainty=options.uncertainty
    )
    if options.raw_frames is not None:
        own = subject.traits.convention.size
        size = own if options.raw_frames == (0, 0) else options.raw_frames
        traits = dataclasses.replace(subject.traits, frame_size=size, frame_color=options.raw_color)
        subject = dataclasses.replace(subject, traits=traits)
    say(f"{subject.info.architecture} from {subject.path.name}, {len(frames)} frames to verify on")
    network = for_inference(subject.model, uncertainty=options.uncertainty)
    outputs = ("logits", "uncertainty") if options.uncertainty else ("logits",)
    graph = export_graph(network, subject.traits.convention.size, outputs, options.opset)
    say(f"ONNX: {len(graph.graph.node)} nodes, opset {options.opset}")
    return Source(checkpoint, subject, network, graph, frames)
