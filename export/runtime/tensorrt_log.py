"""TensorRT's errors as ours: its log is kept, and every answer that means failure is refused."""

from __future__ import annotations

import re
from typing import Any

from medisseg.errors import UserError

_SCRATCH = re.compile(r"Total Activation Memory: (\d+) bytes")


def logger(trt: Any, verbose: bool = False) -> Any:
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

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message.strip())
            elif verbose and message.startswith("Layers:"):
                self.layers = message
            elif verbose and (found := _SCRATCH.match(message)):
                self.scratch_mb = int(found[1]) / 1e6

    return Logger()


def made(thing: Any, log: Any, what: str) -> Any:
    """Return ``thing`` unless TensorRT gave None for it."""
    ok(thing is not None, log, f"TensorRT gave no {what}")
    return thing


def ok(good: bool, log: Any, what: str) -> None:
    """TensorRT answers False or None where it fails: every answer comes through here.

    Raises:
        UserError: ``what`` failed; with the last things that TensorRT said.
    """
    if not good:
        said = "; ".join(getattr(log, "errors", [])[-3:]) or "no reason was given"
        raise UserError(f"{what} ({said})")


def opened(kind: Any, log: Any) -> Any:
    """Return ``kind(log)``, a Builder or a Runtime.

    Raises:
        UserError: There is no NVIDIA driver: the bindings then raise TypeError.
    """
    try:
        return made(kind(log), log, kind.__name__.lower())
    except TypeError as error:
        said = "; ".join(log.errors[-3:]) or str(error)
        raise UserError(
            f"TensorRT finds no NVIDIA GPU and driver here ({said}); see nvidia-smi, or build "
            "without a GPU: --backend tensorrt-rtx --gpu sm86,sm89"
        ) from error
