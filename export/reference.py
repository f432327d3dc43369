"""The PyTorch network that an engine is built from and verified against."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from export.model_info import ModelInfo
from export.options import BuildOptions
from export.samples import ReferenceFrame, frames_from
from export.verify import Array, Image

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from medisseg.checkpoint import Checkpoint
    from medisseg.model.network import Network


@dataclass(frozen=True)
class ReferenceModel:
    """A checkpoint's network, and the model information of the engine to build.

    Attributes:
        model: The PyTorch network, whole and in evaluation mode.
        info: Its checkpoint's header.
        path: The checkpoint file.
        model_info: Input convention, classes and largest batch of the engine.
    """

    model: Network
    info: Checkpoint
    path: Path
    model_info: ModelInfo

    def answer(self, image: Image) -> tuple[Array, None]:
        """Return the network's logits float32 [1, K, h, w] of a uint8 RGB image [H, W, 3]."""
        import torch

        batch = torch.from_numpy(self.model_info.convention.preprocess(image)[None])
        with torch.inference_mode():
            return self.model(batch).numpy(), None


def open_reference(
    checkpoint: str | Path,
    model_info: ModelInfo | None = None,
    *,
    size: tuple[int, int] | None = None,
    max_batch: int = 1,
    uncertainty: bool = False,
) -> ReferenceModel:
    """Open a checkpoint.

    Args:
        checkpoint: File or packaged name.
        model_info: Of the engine; None takes the checkpoint's own.
        size: Input (height, width) in pixels; None for the checkpoint's own.
        max_batch, uncertainty: Of the engine, where ``model_info`` is None.
    """
    from medisseg.checkpoint import resolve
    from medisseg.model.loading import load_checkpoint

    model = load_checkpoint(checkpoint, device="cpu").eval()
    info = model.info
    assert info is not None
    if model_info is None:
        convention = dataclasses.replace(info.convention, size=size or info.convention.size)
        model_info = ModelInfo(
            convention, info.threshold, info.classes, max_batch, uncertainty, labels=info.labels
        )
    return ReferenceModel(model, info, resolve(checkpoint), model_info)


@dataclass(frozen=True)
class BuildInput:
    """The inputs of a build, independent of its precision.

    Attributes:
        name: The checkpoint as it was named.
        reference: Its network.
        network: The network for inference: training branches cut off, BatchNorm folded.
        graph: That network in float32 ONNX.
        frames: Images (and masks) that the engine is verified on.
    """

    name: str | Path
    reference: ReferenceModel
    network: nn.Module
    graph: onnx.ModelProto
    frames: Sequence[ReferenceFrame]


def open_input(
    checkpoint: str | Path, options: BuildOptions, progress: Callable[[str], None]
) -> BuildInput:
    """Open a checkpoint, export its network to ONNX, and read the frames to verify on.

    Raises:
        UserError: No such checkpoint or data, or the network cannot be exported as asked.
    """
    from export.graph import export_graph
    from medisseg.data.shares import foreground_line
    from medisseg.model.inference import for_inference

    frames = frames_from(options.data, options.images, options.split)
    shares = [float((frame.mask > 0).mean()) for frame in frames if frame.mask is not None]
    if options.data is not None and shares:
        progress(f"to verify on: {foreground_line(shares)}")
    reference = open_reference(
        checkpoint, size=options.size, max_batch=options.batch[-1], uncertainty=options.uncertainty
    )
    if options.raw_frames is not None:
        own = reference.model_info.convention.size
        size = own if options.raw_frames == (0, 0) else options.raw_frames
        model_info = dataclasses.replace(
            reference.model_info, frame_size=size, frame_color=options.raw_color
        )
        reference = dataclasses.replace(reference, model_info=model_info)
    name = f"{reference.info.architecture} from {reference.path.name}"
    progress(f"{name}, {len(frames)} frames to verify on")
    network = for_inference(reference.model, uncertainty=options.uncertainty)
    outputs = ("logits", "uncertainty") if options.uncertainty else ("logits",)
    graph = export_graph(network, reference.model_info.convention.size, outputs, options.opset)
    progress(f"ONNX: {len(graph.graph.node)} nodes, opset {options.opset}")
    return BuildInput(checkpoint, reference, network, graph, frames)
