"""A file of the kernels that TensorRT for RTX compiled, so that it compiles once on a machine.

Its default compiles kernels for a shape in the background and runs slower ones meanwhile; a CUDA
graph captured then would keep the slow ones for ever. So compilation is eager, and its result is
kept in a file.
"""

from __future__ import annotations

import logging
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from medisseg.errors import UserError
from medisseg.files import replacing

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)


class KernelCache:
    """The compiled kernels of an engine, and the configuration that uses them.

    Args:
        trt: The module tensorrt_rtx.
        engine: Its ICudaEngine.
        path: The file; one that is absent, damaged or of another GPU or driver is written anew.
            None compiles and keeps nothing.

    Attributes:
        runtime_config: IRuntimeConfig for the engine's contexts.
    """

    def __init__(self, trt: ModuleType, engine: Any, path: Path | None) -> None:
        self._path = path
        self._before = path.read_bytes() if path and path.is_file() else b""
        self.runtime_config = engine.create_runtime_config()
        eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        self.runtime_config.dynamic_shapes_kernel_specialization_strategy = eager
        # We capture ourselves.
        self.runtime_config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
        self._kernels = self.runtime_config.create_runtime_cache()
        if self._before and not self._kernels.deserialize(self._before):
            log.info("%s is of another GPU or driver: kernels are compiled again", path)
        self.runtime_config.set_runtime_cache(self._kernels)

    def save(self) -> None:
        """Write newly compiled kernels to the file; a folder that cannot be written is no error."""
        content = bytes(self._kernels.serialize())
        if self._path is None or content == self._before:
            return
        try:
            with replacing(self._path) as temporary:
                temporary.write_bytes(content)
        except (OSError, UserError) as error:
            log.info("kernels will be compiled again next time: %s", error)
