"""Our engines inside Triton's Python backend: for bundles that the server has no backend for.

The version's folder holds ``model.py``, which names :class:`TritonPythonModel`, and the bundle.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from export.runtime.engine import BaseEngine, Outputs
from export.runtime.loading import load_engine
from medisseg.errors import UserError


class TritonPythonModel:
    """What Triton's Python backend calls: ``initialize``, ``execute``, ``finalize``."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle of this version, on the device that the instance was given."""
        folder = Path(args["model_repository"]) / args["model_version"]
        bundle = next((folder / name for name in ("bundle", "bundle.mdsg")
                       if (folder / name).exists()), None)  # fmt: skip
        if bundle is None:
            raise UserError(f"{folder} holds no bundle; write the repository again")
        gpu = args["model_instance_kind"] == "GPU"
        device = f"cuda:{args['model_instance_device_id']}" if gpu else "auto"
        self._engine: BaseEngine = load_engine(bundle, device)
        self._pb: Any = importlib.import_module("triton_python_backend_utils")
        self._input = "images" if self._engine.model_info.frame_size is None else "frames"

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the requests of one dynamic batch together; return one response for each."""
        inputs = [
            self._pb.get_input_tensor_by_name(request, self._input).as_numpy()
            for request in requests
        ]
        batch = inputs[0] if len(inputs) == 1 else np.concatenate(inputs)
        answers = self._answers(batch)
        ends = np.cumsum([len(given) for given in inputs])[:-1]
        parts = {name: np.split(value, ends) for name, value in answers.items()}
        return [
            self._pb.InferenceResponse(
                [
                    self._pb.Tensor(name, np.ascontiguousarray(each[i]))
                    for name, each in parts.items()
                ]
            )
            for i in range(len(requests))
        ]

    def _answers(self, batch: Any) -> Outputs:
        if self._input == "frames":
            return self._engine.frame_outputs(batch)
        return dict(self._engine.outputs(batch))

    def finalize(self) -> None:
        """Free the engine."""
        self._engine.close()
