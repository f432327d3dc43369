"""OpenVINO on Intel and AMD CPUs: the fastest without an NVIDIA GPU.

Where the CPU has matrix units for bfloat16 (AMX) it is used unless float32 is asked for; the name
says what was really compiled.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export.model_info import ModelInfo
from export.runtime.engine import BaseEngine, Images, Outputs
from medisseg.errors import UserError

if TYPE_CHECKING:
    import openvino

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
_NAMES = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}


class OpenVinoEngine(BaseEngine):
    """A network compiled by OpenVINO for low latency.

    Args:
        model: OpenVINO IR (XML) or a serialised ONNX model.
        weights: The IR's weights; None for ONNX.
        model_info: Input convention, classes and largest batch.
        precision: "bf16", "fp16", "fp32", "int8" (the graph's Q/DQ, the rest in float32), or
            "auto": bf16 where this CPU has AMX, else float32.
        threads: Threads of one run; None for all cores.
        device: OpenVINO's device, "CPU" or "GPU" (an Intel GPU).
    """

    backend = "openvino"

    def __init__(
        self,
        model: bytes,
        weights: bytes | None,
        model_info: ModelInfo,
        precision: str = "auto",
        threads: int | None = None,
        device: str = "CPU",
    ) -> None:
        import openvino

        core = openvino.Core()
        if device not in {name.split(".")[0] for name in core.available_devices}:
            raise UserError(f"OpenVINO has no device {device}; it has {core.available_devices}")
        try:
            network = core.read_model(model, weights if weights is not None else b"")
            chosen = options(core, precision, threads, device)
            if device == "CPU" and chosen["INFERENCE_PRECISION_HINT"] == "f32":
                exponential_tanh(network)
            self._compiled: openvino.CompiledModel | None = core.compile_model(
                network, device, chosen
            )
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(
                f"OpenVINO {openvino.__version__} cannot compile this network ({reason}); "
                "build the bundle again with this version"
            ) from error
        self._request = self._compiled.create_infer_request()
        self._outputs = [output.get_any_name() for output in self._compiled.outputs]
        hint = self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.precision = "int8" if precision == "int8" else _NAMES.get(hint, hint)
        release = openvino.__version__.split("-")[0]
        used = f", {threads} threads" if threads else ""
        super().__init__(model_info, f"OpenVINO {release} {self.precision} on {device}{used}")

    def _run(self, batch: Images) -> Outputs:
        if self._request is None:
            raise RuntimeError(f"{self.name} is closed; open it again with load_engine")
        results = self._request.infer([np.ascontiguousarray(batch)], share_inputs=True)
        # Copied, because the request's own memory is overwritten by the next run.
        return {name: np.array(results[i]) for i, name in enumerate(self._outputs)}

    def convolution_types(self) -> dict[str, int]:
        """Count the compiled convolutions by the precision they are executed in."""
        counts: dict[str, int] = {}
        assert self._compiled is not None
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            info = node.get_rt_info()
            if "Convolution" not in str(info["layerType"].astype(str)):
                continue
            kind = info["runtimePrecision"].astype(str).lower()
            name = {"f32": "FP32", "bf16": "BF16", "f16": "FP16", "i8": "INT8", "u8": "INT8"}
            counts[name.get(kind, kind)] = counts.get(name.get(kind, kind), 0) + 1
        return counts

    def close(self) -> None:
        """Free the compiled network."""
        self._request = self._compiled = None


def exponential_tanh(network: openvino.Model) -> int:
    """Write TeLU's tanh(u) = 1 - 2 / (1 + exp(2 u)) of a float32 graph; return how many there were.

    On AVX2 OpenVINO's tanh looks its polynomials up in memory and takes five times as long as an
    exponential and a division. Where u = exp(x) is small the difference from 1 rounds: the absolute
    error stays below 1e-7, TeLU's below 1e-6.
    """
    from openvino import opset13 as op

    found = 0
    for node in network.get_ordered_ops():
        if node.get_type_name() != "Tanh" or node.get_element_type().get_type_name() != "f32":
            continue
        argument = node.input_value(0)
        if argument.get_node().get_type_name() != "Exp":  # elsewhere tanh near 0 must be exact
            continue
        two, one = op.constant(np.float32(2)), op.constant(np.float32(1))
        ratio = op.divide(two, op.add(op.exp(op.multiply(argument, two)), one))
        for user in node.output(0).get_target_inputs():
            user.replace_source_output(op.subtract(one, ratio).output(0))
        found += 1
    return found


def options(
    core: openvino.Core, precision: str, threads: int | None, device: str = "CPU"
) -> dict[str, object]:
    """Return the compile options for low latency in ``precision``.

    Raises:
        UserError: This CPU does not compute in the precision asked for.
    """
    able = core.get_property(device, "OPTIMIZATION_CAPABILITIES")
    if precision == "auto":
        precision = "bf16" if fast_bfloat16(core) else "fp32"
    elif precision in ("bf16", "fp16") and precision.upper() not in able:
        # OpenVINO would compute in float32 without a word.
        raise UserError(
            f"this {device} does not compute in {precision} (it has {', '.join(able)}); "
            "use --precision fp32, or auto"
        )
    chosen: dict[str, object] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "NUM_STREAMS": 1,
    }
    if threads and device == "CPU":
        chosen["INFERENCE_NUM_THREADS"] = threads
    return chosen


def fast_bfloat16(core: openvino.Core) -> bool:
    """Whether this CPU computes bfloat16 faster than float32, which takes AMX.

    OpenVINO chooses bfloat16 for AVX-512 BF16 too, where its convolutions were slower than in
    float32; ``python -m benchmarks.inference`` measures both.
    """
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    flags = Path("/proc/cpuinfo")
    return "BF16" in able and flags.is_file() and "amx_bf16" in flags.read_text()
