"""The protocol of every engine, and the base class with the checks that all of them share."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from export.model_info import BACKENDS, PRECISIONS, ModelInfo
from medisseg.convention import InputConvention
from medisseg.errors import UserError
from medisseg.labels import Label

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[np.float32]
Values: TypeAlias = "Array | torch.Tensor"  # of a batch, an image or an answer
Batch = TypeVar("Batch", Array, "torch.Tensor")
Images = npt.NDArray[np.float32] | npt.NDArray[np.uint8]  # preprocessed images, or frames
Outputs = dict[str, npt.NDArray[Any]]  # by name: logits and uncertainty float32, mask uint8
__all__ = [
    "BACKENDS",
    "PRECISIONS",
    "Array",
    "BaseEngine",
    "Batch",
    "Engine",
    "ModelInfo",
    "Values",
]


@runtime_checkable
class Engine(Protocol):
    """A network that is open in some backend.

    Attributes:
        backend: One of ``BACKENDS``.
        name: Backend, version, precision and device, for people.
        convention: How an image becomes the network's input.
        threshold: Probability in (0, 1) above which a pixel is foreground.
        classes: Number K of logit maps.
        max_batch: Largest batch of one run; longer ones are run in parts.
    """

    backend: str
    name: str
    convention: InputConvention
    threshold: float
    classes: int
    labels: tuple[Label, ...]
    max_batch: int

    @property
    def device(self) -> torch.device | str:
        """Where it computes: "cpu", or a CUDA device, whose tensors it takes without a copy."""

    def infer(self, batch: Batch) -> Batch:
        """Return logits float32 [N, K, h, w] of preprocessed images float32 [N, 3, h, w].

        An array is answered with an array, a tensor with a tensor; the answer is complete, and the
        caller's own.
        """

    def close(self) -> None:
        """Free what the engine holds; using it afterwards is an error."""


class BaseEngine:
    """Shape checks, batches longer than ``max_batch``, frames, and the context manager.

    A backend implements ``_run(images) -> {output name: array}`` for at most ``max_batch`` images.

    Example:
        >>> with load_engine("edge-polyp") as engine:
        ...     logits = engine.infer(engine.convention.preprocess(image)[None])
    """

    backend = ""
    device: torch.device | str = "cpu"

    def __init__(self, model_info: ModelInfo, name: str) -> None:
        self.model_info = model_info
        self.name = name
        self.convention = model_info.convention
        self.threshold = model_info.threshold
        self.classes = model_info.classes
        self.labels = model_info.labels
        self.max_batch = model_info.max_batch

    def infer(self, batch: Batch) -> Batch:
        """Return logits float32 [N, K, h, w] of preprocessed images float32 [N, 3, h, w].

        Args:
            batch: An array, answered with an array; or a tensor, which best lies on the engine's
                own device, answered with a tensor there. The caller owns the answer.

        Raises:
            ValueError: Another shape or dtype.
            UserError: The bundle takes whole frames: call :meth:`segment`.
        """
        if isinstance(batch, np.ndarray):
            return self.outputs(batch)["logits"]
        import torch

        self._check(batch)
        # The engine's own memory is overwritten by its next run.
        parts = [
            self.run_on_device(part)["logits"].to(torch.float32, copy=True)
            for part in batch.split(self.max_batch)
        ]
        logits = parts[0] if len(parts) == 1 else torch.cat(parts)
        if logits.is_cuda:
            torch.cuda.current_stream(logits.device).synchronize()
        return logits

    def outputs(self, batch: Array) -> dict[str, Array]:
        """Return every output by name for images float32 [N, 3, h, w].

        "logits" float32 [N, K, h, w] and, where it was built in, "uncertainty" [N, 1, h, w].
        """
        self._check(batch)
        return self._in_parts(batch)

    def run_on_device(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return every output of at most ``max_batch`` images, in memory that is the engine's own.

        The next run may overwrite it. This one takes the way through the host; engines on a GPU
        have their own.
        """
        import torch

        outputs = self._run(batch.cpu().numpy())
        return {name: torch.from_numpy(value).to(batch.device) for name, value in outputs.items()}

    def _check(self, batch: Values) -> None:
        if self.model_info.frame_size is not None:
            raise UserError(
                f"{self.name} was built with --raw-frames: it takes uint8 frames (engine.segment), "
                "not preprocessed images; build it without --raw-frames for this use"
            )
        expected = (3, *self.convention.size)
        kind = str(batch.dtype).removeprefix("torch.")
        if batch.ndim != 4 or tuple(batch.shape[1:]) != expected or kind != "float32":
            raise ValueError(
                f"images are {kind} {list(batch.shape)}; expected float32 "
                f"[N, {', '.join(map(str, expected))}], as convention.preprocess gives them"
            )
        if len(batch) == 0:
            raise ValueError("the batch is empty; expected at least one image")

    def segment(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return masks uint8 [N, H, W] of frames uint8 [N, H, W, 3] in the graph's channel order.

        Raises:
            UserError: The engine takes preprocessed images (it was built without --raw-frames).
        """
        return self.frame_outputs(frames)["mask"]

    def frame_outputs(self, frames: npt.NDArray[np.uint8]) -> Outputs:
        """Return "mask" uint8 [N, H, W] and "logits" [N, K, h, w] of frames uint8 [N, H, W, 3].

        Raises:
            UserError: The engine takes preprocessed images.
            ValueError: Another shape or dtype.
        """
        size = self.model_info.frame_size
        if size is None:
            raise UserError(f"{self.name} takes preprocessed images; build it with --raw-frames")
        if frames.shape[1:] != (*size, 3) or frames.dtype != np.uint8:
            raise ValueError(
                f"frames are {frames.dtype} {list(frames.shape)}; expected uint8 "
                f"[N, {size[0]}, {size[1]}, 3] in {self.model_info.frame_color} order"
            )
        return self._in_parts(frames)

    def _in_parts(self, batch: Images) -> Outputs:
        if len(batch) == 0:
            raise ValueError("the batch is empty; expected at least one image")
        step = self.max_batch
        parts = [self._run(batch[i : i + step]) for i in range(0, len(batch), step)]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _run(self, batch: Images) -> Outputs:
        raise NotImplementedError

    def close(self) -> None:
        """Free what the engine holds; using it afterwards is an error."""

    def __enter__(self) -> BaseEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
