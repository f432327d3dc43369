"""What every engine promises, and the checks that all of them share."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from export.traits import BACKENDS, PRECISIONS, Traits
from medisseg.convention import InputConvention
from medisseg.errors import UserError

Array = npt.NDArray[np.float32]
__all__ = ["BACKENDS", "PRECISIONS", "BaseEngine", "Engine", "Traits"]


@runtime_checkable
class Engine(Protocol):
    """A network ready to answer.

    Attributes:
        backend: One of ``BACKENDS``.
        name: Backend, version, precision and device, for people.
    """

    backend: str
    name: str
    convention: InputConvention
    threshold: float
    classes: int
    max_batch: int

    def infer(self, batch: Array) -> Array:
        """Return logits float32 [N, K, H, W] of preprocessed images float32 [N, 3, H, W]."""

    def close(self) -> None:
        """Free what the engine holds; using it afterwards is an error."""

    def __enter__(self) -> Engine: ...

    def __exit__(self, *_: object) -> None: ...


class BaseEngine:
    """Shape checks, batches longer than ``max_batch``, frames, and the context manager.

    A backend implements ``_run(images) -> {output name: array}`` for at most ``max_batch`` images.

    Example:
        >>> with load_engine("edge-kvasir") as engine:
        ...     logits = engine.infer(engine.convention.preprocess(image)[None])
    """

    backend = ""

    def __init__(self, traits: Traits, name: str) -> None:
        self.traits = traits
        self.name = name
        self.convention = traits.convention
        self.threshold = traits.threshold
        self.classes = traits.classes
        self.max_batch = traits.max_batch

    def infer(self, batch: Array) -> Array:
        """Return logits float32 [N, K, H, W] of preprocessed images float32 [N, 3, H, W].

        Raises:
            ValueError: Another shape or dtype.
            UserError: The bundle takes whole frames: call :meth:`segment`.
        """
        return self.outputs(batch)["logits"]

    def outputs(self, batch: Array) -> dict[str, Array]:
        """Return every output by name: "logits", and "uncertainty" [N, 1, H, W] where built in."""
        if self.traits.frame_size is not None:
            raise UserError(
                f"{self.name} was built with --raw-frames: it takes uint8 frames (engine.segment), "
                "not preprocessed images; build it without --raw-frames for this use"
            )
        expected = (3, *self.convention.size)
        if batch.ndim != 4 or batch.shape[1:] != expected or batch.dtype != np.float32:
            raise ValueError(
                f"images are {batch.dtype} {list(batch.shape)}; expected float32 "
                f"[N, {', '.join(map(str, expected))}], as convention.preprocess gives them"
            )
        return self._in_parts(batch)

    def segment(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return masks uint8 [N, H, W] of frames uint8 [N, H, W, 3] (``--raw-frames`` only)."""
        return self.frame_outputs(frames)["mask"]

    def frame_outputs(self, frames: npt.NDArray[np.uint8]) -> dict[str, Any]:
        """Return "mask" uint8 [N, H, W] and "logits" [N, K, h, w] of whole frames."""
        size = self.traits.frame_size
        if size is None:
            raise UserError(f"{self.name} takes preprocessed images; build it with --raw-frames")
        if frames.shape[1:] != (*size, 3) or frames.dtype != np.uint8:
            raise ValueError(
                f"frames are {frames.dtype} {list(frames.shape)}; expected uint8 "
                f"[N, {size[0]}, {size[1]}, 3] in {self.traits.frame_color} order"
            )
        return self._in_parts(frames)

    def _in_parts(self, batch: npt.NDArray[Any]) -> dict[str, Any]:
        if len(batch) == 0:
            raise ValueError("the batch is empty; expected at least one image")
        step = self.max_batch
        parts = [self._run(batch[i : i + step]) for i in range(0, len(batch), step)]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _run(self, batch: npt.NDArray[Any]) -> dict[str, Any]:
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
