"""Torch-TensorRT's builder and engine over a stand-in: it does not import without an NVIDIA GPU."""

from __future__ import annotations

import inspect
import json
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from fake_cuda import Cuda, Torch

from export.builders import registry, torch_tensorrt_builder
from export.builders.spec import Spec
from export.runtime.engine import BaseEngine
from export.runtime.tensorrt_engine import TensorRTEngine
from export.runtime.torch_engine import TorchEngine
from export.runtime.torch_tensorrt_engine import TorchTensorRTEngine
from medisseg.errors import UserError


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.second(self.first(images))
        return answer


class Compiled(torch.nn.Module):
    """A compiled module; TensorRT keeps names alone unless it is asked for details."""

    layers: list[Any] = []

    def get_layer_info(self) -> str:
        return json.dumps({"Layers": self.layers})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Put a torch_tensorrt in place; return what it was asked for."""
    asked: dict[str, Any] = {}
    module = ModuleType("torch_tensorrt")

    def compile(network: torch.nn.Module, **words: Any) -> torch.nn.Module:
        asked.update(words, dtype=next(network.parameters()).dtype)
        if "fails" in asked:
            raise RuntimeError("aten.foo has no converter\nand more")
        compiled = Compiled()
        compiled.layers = asked.get("layers", [])
        return compiled

    def save(_: Any, path: str, **words: Any) -> None:
        asked["saved"] = words
        with open(path, "wb") as file:
            file.write(b"program")

    module.__dict__.update(
        compile=compile, save=save, Input=lambda **words: words, __version__="2.9"
    )
    monkeypatch.setitem(sys.modules, "torch_tensorrt", module)
    monkeypatch.setattr(torch_tensorrt_builder, "torch", Torch(Cuda()))
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: self)
    return asked


def build(**more: Any) -> Any:
    spec = Spec(**({"precision": "fp16", "batch": (1, 2, 4), "input_shape": (3, 16, 24)} | more))
    return torch_tensorrt_builder.build_torch_tensorrt(Network(), spec)


def test_whole_network_is_compiled_or_nothing(fake: dict[str, Any]) -> None:
    fake["layers"] = [
        "[CONVOLUTION]-[aten_ops.convolution.default]-[first/convolution] + [RELU]-[x]",
        "[CONVOLUTION]-[aten_ops.convolution.default]-[second/convolution]",
        "reformat",
    ]
    built = build()
    assert fake["require_full_compilation"] and fake["use_explicit_typing"] and fake["disable_tf32"]
    assert fake["dtype"] == torch.float16
    (given,) = fake["inputs"]
    assert given["min_shape"] == (1, 3, 16, 24) and given["max_shape"] == (4, 3, 16, 24)
    assert built.convolutions == {"FP16": 2} and built.inspected == "engine"
    assert registry.audit(built, "fp16", "torch-tensorrt") == 1.0
    assert built.parts == {"network.ep": b"program"}
    fake["fails"] = True
    with pytest.raises(UserError, match=r"did not compile the whole network \(aten.foo has no c"):
        build()


def test_what_was_built_is_counted_and_not_what_was_asked_for(fake: dict[str, Any]) -> None:
    def layer(kind: str) -> dict[str, Any]:
        tensor = [{"Format/Datatype": kind}]
        name = "[CONVOLUTION]-[aten_ops.convolution.default]-[c]"
        return {"Name": name, "LayerType": "conv", "Inputs": tensor, "Outputs": tensor}

    fake["layers"] = [layer("Float"), layer("Float"), layer("Half")]
    built = build()
    assert built.convolutions == {"FP32": 2, "FP16": 1}
    with pytest.raises(UserError, match="fp16 was asked for"):
        registry.audit(built, "fp16", "torch-tensorrt")
    fake["layers"] = ["one fused kernel"]
    with pytest.raises(UserError, match="no convolution was found"):
        registry.audit(build(), "fp16", "torch-tensorrt")


def test_precision_that_it_does_not_build(fake: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="builds fp16, bf16, fp32"):
        build(precision="int8")


@pytest.mark.parametrize("engine", [TorchEngine, TensorRTEngine, TorchTensorRTEngine])
def test_benchmarks_measure_every_gpu_engine_on_its_device(engine: type[BaseEngine]) -> None:
    """A row from numpy to numpy beside rows on the device would compare copies."""
    assert engine.run_on_device is not BaseEngine.run_on_device
    assert ".cpu()" not in inspect.getsource(engine.run_on_device)
