"""Builds with TensorRT's real bindings, in a process of their own: python builds.py FILE [PRESET].

Every combination of options over a small network, or one of the presets; what was built, and what
the builder was asked for, is written as JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from export import int8, precision
from export.builders import registry, tensorrt_builder
from export.builders.spec import Spec
from export.graph import export_graph
from export.mixed_precision import PreparedGraph
from export.raw_frames import with_frames
from kernels import window_mix_convolution
from medisseg.convention import InputConvention
from medisseg.errors import UserError
from medisseg.model.blocks import CBT, ChannelGate, TeLU
from medisseg.model.inference import fold, for_inference

SIZE = (32, 48)
BATCHES = ((1, 1, 1), (1, 1, 4), (2, 3, 8))


class Small(nn.Module):
    """The kinds of operators of the real networks."""

    def __init__(self, uncertainty: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.light = CBT(16, 16, separable=True)
        self.dilated = CBT(16, 16, dilation=2)
        self.gate = ChannelGate(16)
        self.attend = nn.Conv2d(16, 2 * 81, 1)
        self.values = nn.Conv2d(16, 16, 1)
        self.logits = nn.Conv2d(16, 1, 1)
        self.doubt = nn.Conv2d(16, 1, 1) if uncertainty else None
        fold(self.eval())
        for part in self.modules():
            if isinstance(part, TeLU):
                part.portable = True

    def forward(self, x: torch.Tensor) -> Any:
        x = self.gate(self.dilated(self.light(self.stem(x))))
        x = x + window_mix_convolution(self.attend(x), self.values(x))
        maps = [self.logits, *([self.doubt] if self.doubt is not None else [])]
        full = [
            F.interpolate(part(x), scale_factor=2.0, mode="bilinear", align_corners=True)
            for part in maps
        ]
        return full[0] if len(full) == 1 else tuple(full)


@contextlib.contextmanager
def quiet() -> Iterator[Any]:
    """No progress bar."""
    yield type("Bar", (), {"add_task": lambda *a, **k: 1, "update": lambda *a, **k: None,
                           "remove_task": lambda *a: None})()  # fmt: skip


asked: dict[str, Any] = {}
_run = tensorrt_builder._run


def _noted(trt: Any, builder: Any, network: Any, config: Any, progress: Any, log: Any) -> bytes:
    """Note what the builder was asked for, then build."""
    asked.clear()
    asked.update(
        tf32=config.get_flag(trt.BuilderFlag.TF32),
        version=config.get_flag(trt.BuilderFlag.VERSION_COMPATIBLE),
        workspace=config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE),
        hardware=config.hardware_compatibility_level.name,
        inputs=[[network.get_input(i).name, network.get_input(i).dtype.name]
                for i in range(network.num_inputs)],
        outputs=[[network.get_output(i).name, network.get_output(i).dtype.name]
                 for i in range(network.num_outputs)],
    )  # fmt: skip
    plan = _run(trt, builder, network, config, progress, log)
    asked["layers"] = log.layers
    return plan


tensorrt_builder._run = _noted


def case(prepared: PreparedGraph, spec: Spec) -> dict[str, Any]:
    """Build; return what was built and what was asked, or the refusal."""
    try:
        built = tensorrt_builder.build_tensorrt("tensorrt", prepared, spec, quiet)
        quantized = precision.convolution_types(prepared.model).get("INT8")
        share = registry.audit(built, spec.precision, "tensorrt", quantized)
    except UserError as error:
        return {"refused": str(error)}
    facts = dataclasses.asdict(dataclasses.replace(built, parts={}, open=None))
    text = asked.pop("layers", "")
    return facts | asked | {
        "bytes": {name: len(content) for name, content in built.parts.items()},
        "share": share,
        "graph": sum(node.op_type == "Conv" for node in prepared.model.graph.node),
        "profile": text[text.find("ProfileInfo") :].splitlines()[0],
    }  # fmt: skip


def in_precision(graph: Any, kind: str, fp32_nodes: tuple[str, ...] = ()) -> PreparedGraph:
    """Return a graph in a precision, without looking for layers to keep."""
    if kind == "int8":
        ranges = {name: 4.0 for node in graph.graph.node for name in node.input}
        graph = int8.with_scales(graph, ranges, int8.quantizable(graph), 127)
        kind = "fp16"
    model = graph if kind == "fp32" else precision.typed(graph, kind, fp32_nodes)
    return PreparedGraph(model, model, fp32_nodes)


def options() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every combination over the small network."""
    torch.manual_seed(0)
    graphs = {kind: export_graph(Small(), SIZE, opset=22 if kind == "bf16" else 20)
              for kind in ("fp16", "bf16")}  # fmt: skip
    graphs |= {"fp32": graphs["fp16"], "int8": graphs["fp16"]}
    usual = {"input_shape": (3, *SIZE)}
    prepared = {kind: in_precision(graph, kind) for kind, graph in graphs.items()}
    for kind in graphs:
        for batch in BATCHES:
            yield f"{kind} {batch}", case(prepared[kind], Spec(kind, batch, **usual))
    half = prepared["fp16"]
    yield "workspace", case(half, Spec("fp16", workspace=64, **usual))
    yield "hardware", case(half, Spec("fp16", hardware_compatible=True, **usual))
    yield "version", case(half, Spec("fp16", version_compatible=True, **usual))
    yield "dla", case(half, Spec("fp16", (1, 1, 1), dla=0, **usual))
    yield "gpu", case(half, Spec("fp16", gpus=("sm86",), **usual))
    yield "halved", case(prepared["fp32"], Spec("fp16", **usual))
    cache = Path(sys.argv[1]).with_suffix(".timings")
    for turn in ("written", "read"):
        yield f"timings {turn}", case(half, Spec("fp16", timing_cache=cache, **usual))
    for name, kept in (
        ("fp32_nodes", ("light.depthwise/Conv", "light.conv/Conv")),
        ("island alone", ("dilated.conv/Conv",)),
    ):
        yield name, case(in_precision(graphs["fp16"], "fp16", kept), Spec("fp16", **usual))
    lost = dataclasses.replace(half, fp32_nodes=("light.depthwise/Conv", "light.conv/Conv"))
    yield "fp32_nodes lost", case(lost, Spec("fp16", **usual))
    for color in ("RGB", "BGR"):
        frames = with_frames(half.model, InputConvention(size=SIZE), (40, 60), color, 0.5)
        spec = Spec("fp16", input_name="frames", input_shape=(40, 60, 3))
        yield f"frames {color}", case(PreparedGraph(frames, frames), spec)
    both = export_graph(Small(uncertainty=True), SIZE, ("logits", "uncertainty"))
    yield "uncertainty", case(in_precision(both, "fp16"), Spec("fp16", **usual))


def preset(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A whole network, as it is shipped."""
    from medisseg.model.create import create_model

    torch.manual_seed(0)
    model = create_model(name).eval()
    graph = export_graph(for_inference(model), (64, 96))
    yield name, case(in_precision(graph, "fp16"), Spec("fp16", input_shape=(3, 64, 96)))


if __name__ == "__main__":
    np.seterr(all="ignore")
    cases = preset(sys.argv[2]) if len(sys.argv) > 2 else options()
    found = {}
    for name, result in cases:
        print(name, flush=True)  # the last one, where the library crashes
        found[name] = result
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1))
