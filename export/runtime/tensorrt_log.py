"""TensorRT's errors as ``UserError``: its log is kept, and every return value is checked."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import ModuleType
from typing import Protocol, TypeVar

from medisseg.errors import UserError

Made = TypeVar("Made")
_SCRATCH = re.compile(r"Total Activation Memory: (\d+) bytes")


class Log(Protocol):
    """Messages of TensorRT: its errors, and the builder's list of the engine's layers.

    Attributes:
        errors: Messages, the newest last.
        layers: The block "Layers:", "" without one.
        scratch_mb: Memory that one run needs, in MB; None where it was not said.
    """

    errors: list[str]
    layers: str
    scratch_mb: float | None


def logger(trt: ModuleType, verbose: bool = False) -> Log:
    """Return a logger that keeps errors for the message.

    Args:
        trt: The module tensorrt or tensorrt_rtx.
        verbose: Keep the builder's own account of the engine, too: ``layers`` as text, and
            ``scratch_mb``.
    """

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.layers = ""
            self.scratch_mb: float | None = None

        def log(self, severity: object, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message.strip())
            elif verbose and message.startswith("Layers:"):
                self.layers = message
            elif verbose and (found := _SCRATCH.match(message)):
                self.scratch_mb = int(found[1]) / 1e6

    return Logger()


def made(thing: Made | None, log: Log, what: str) -> Made:
    """Return ``thing``.

    Raises:
        UserError: It is None: TensorRT could not make ``what``; with its last errors.
    """
    if thing is None:
        raise _failed(log, f"TensorRT gave no {what}")
    return thing


def ok(good: bool, log: Log, what: str) -> None:
    """Check a return value: TensorRT returns False or None where it fails.

    Raises:
        UserError: ``what`` failed; with TensorRT's last errors.
    """
    if not good:
        raise _failed(log, what)


def _failed(log: Log, what: str) -> UserError:
    said = "; ".join(log.errors[-3:]) or "no reason was given"
    return UserError(f"{what} ({said})")


def opened(kind: Callable[[Log], Made | None], log: Log) -> Made:
    """Return ``kind(log)``, a Builder or a Runtime.

    Raises:
        UserError: There is no NVIDIA driver: the bindings then raise TypeError.
    """
    try:
        return made(kind(log), log, str(getattr(kind, "__name__", kind)).lower())
    except TypeError as error:
        said = "; ".join(log.errors[-3:]) or str(error)
        raise UserError(
            f"TensorRT finds no NVIDIA GPU and driver here ({said}); see nvidia-smi, or build "
            "without a GPU: --backend tensorrt-rtx --gpu sm86,sm89"
        ) from error
