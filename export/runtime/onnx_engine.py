"""ONNX Runtime on the CPU: runs everywhere, the slowest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from export.model_info import ModelInfo
from export.runtime.engine import BaseEngine, Images, Outputs
from medisseg.errors import UserError

if TYPE_CHECKING:
    import onnxruntime


class OnnxEngine(BaseEngine):
    """An ONNX graph in ONNX Runtime.

    Args:
        graph: The serialised ONNX model.
        model_info: Input convention, classes and largest batch.
        precision: Precision of the graph, for the name.
        threads: Threads of one run; None for all cores.
    """

    backend = "onnx"

    def __init__(
        self,
        graph: bytes,
        model_info: ModelInfo,
        precision: str = "fp32",
        threads: int | None = None,
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what fails is raised; its log prints names of the graph
        # Its int8 kernels need rounded outputs, and overflow on a CPU without VNNI. Looking for
        # them only costs time: edge took 379 ms with them, 274 ms without, 244 in float32 (AVX2).
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.intra_op_num_threads = threads or 0
        try:
            self._session: onnxruntime.InferenceSession | None = onnxruntime.InferenceSession(
                graph, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own error classes have no public base
            reason = str(error).splitlines()[0]
            raise UserError(
                f"ONNX Runtime {onnxruntime.__version__} cannot run this {precision} graph "
                f"({reason}); build with --precision fp32 or for another backend"
            ) from error
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]
        super().__init__(model_info, f"ONNX Runtime {onnxruntime.__version__} {precision} on CPU")

    def _run(self, batch: Images) -> Outputs:
        if self._session is None:
            raise RuntimeError(f"{self.name} is closed; open it again with load_engine")
        answers = self._session.run(self._outputs, {self._input: np.ascontiguousarray(batch)})
        return dict(zip(self._outputs, answers, strict=True))

    def close(self) -> None:
        """Free the session."""
        self._session = None
