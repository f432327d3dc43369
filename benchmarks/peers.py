"""Networks side by side on a CPU: one core, two cores, and accuracy against milliseconds.

    python -m benchmarks.inference --peers --out FOLDER [--preset edge-kvasir edge-polyp unet ...]
        [--bundle FOLDER ...]

Every network, our encoder alone and, where the package ``ultralytics`` is installed, an untrained
yolo11n-seg graph (speed alone, without its mask assembly) run as float32 graphs in OpenVINO and
ONNX Runtime; bundles, of another precision say, as they were built. The cases take turns, a few
calls of each back to back, as video makes them, so that what else the machine does falls on all
alike. Before a turn there is a pause, because an engine's threads look for more work for a while
after a call and would take the next one's core, and then a call that does not count, because
threads that slept take milliseconds to wake. ``one_core_cpu_ms`` is the processor time of the same
calls. A latency is from numpy to numpy. Dice is what benchmarks/results/runs/NAME holds for a
packaged checkpoint of that name; an untrained network has none.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import itertools
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from benchmarks.common import Row, cores, machine, show, write
from benchmarks.summaries import RUNS
from export.graph import export_graph
from export.model_info import ModelInfo, parse_size
from export.runtime import load_engine
from export.runtime.onnx_engine import OnnxEngine
from export.runtime.openvino_engine import OpenVinoEngine
from medisseg.convention import InputConvention
from medisseg.errors import UserError
from medisseg.files import replacing
from medisseg.model.inference import for_inference

NETWORKS = ("edge-kvasir", "edge-polyp", "unet")
PAUSE = 0.1  # seconds before each turn: ONNX Runtime's threads look for work for 0.06
CALLS = 4  # of one turn
ENGINES: dict[str, Callable[[bytes, ModelInfo, int], Any]] = {
    "openvino": lambda graph, model_info, threads: OpenVinoEngine(
        graph, None, model_info, "fp32", threads
    ),
    "onnx": lambda graph, model_info, threads: OnnxEngine(graph, model_info, "fp32", threads),
}
COLUMNS = ("network", "backend", "one_core_ms", "one_core_cpu_ms", "two_cores_ms",
           "two_cores_fps", "times_encoder", "parameters", "dice")  # fmt: skip


class Peer(NamedTuple):
    """A float32 graph, how many parameters its training form has, Dice where it is known, and the
    encoder that it is measured in multiples of.
    """

    name: str
    graph: bytes
    parameters: int
    dice: float | None = None
    encoder: str | None = None


class Deepest(nn.Module):
    """An encoder that answers its deepest feature alone."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 3, H, W] -> [N, C, h, w]."""
        deepest: torch.Tensor = self.encoder(x)[-1]
        return deepest


def peers(networks: Mapping[str, nn.Module], size: tuple[int, int]) -> Iterator[Peer]:
    """Yield each network's graph, every encoder's alone, and YOLO's where it is installed."""
    encoders = set()
    for name, model in networks.items():
        network = for_inference(model)
        encoder = getattr(getattr(model, "options", None), "encoder", None)
        own = f"{encoder}, alone" if encoder else None
        yield Peer(name, graph_of(network, size), count(model), known_dice(name), own)
        if own and own not in encoders:
            encoders.add(own)
            alone = Deepest(network.encoder)
            yield Peer(own, graph_of(alone, size), count(alone), encoder=own)
    if importlib.util.find_spec("ultralytics"):
        yield yolo(size)


def graph_of(network: nn.Module, size: tuple[int, int]) -> bytes:
    """Return the ONNX graph of a network that answers one map."""
    return export_graph(network, size).SerializeToString()


def count(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in model.parameters())


def known_dice(name: str) -> float | None:
    """Return the mean Dice that a checkpoint's summary holds."""
    file = RUNS / name / "metrics.json"
    return float(json.loads(file.read_text())["mdsc"]) if file.is_file() else None


def yolo(size: tuple[int, int]) -> Peer:
    """Return yolo11n-seg, untrained, as its own package exports it (AGPL: never a dependency)."""
    try:
        from ultralytics import YOLO
    except RuntimeError:  # beside a CPU torch its torchvision has no operators, and asks for this
        torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float t) -> Tensor")
        from ultralytics import YOLO

    model = YOLO("yolo11n-seg.yaml").model.eval().float().fuse()
    model.model[-1].export, model.model[-1].format = True, "onnx"
    file, sample = io.BytesIO(), torch.zeros(1, 3, *size)
    model(sample)
    torch.onnx.export(
        model, (sample,), file, opset_version=17, dynamo=False, input_names=["images"]
    )
    return Peer("yolo11n-seg, untrained", file.getvalue(), count(model))


def in_turn(
    calls: Mapping[Any, Callable[[], Any]], seconds: float
) -> dict[Any, list[tuple[float, float]]]:
    """Return each call's (elapsed, processor) seconds.

    They take turns of ``CALLS``, ``seconds`` for each in all, pauses included.

    Every one has at least five turns, or two for 0 seconds.
    """
    times: dict[Any, list[tuple[float, float]]] = {key: [] for key in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds * len(calls)
    rounds = 0
    while rounds < (5 if seconds else 2) or time.perf_counter() < end:
        for key, call in calls.items():
            time.sleep(PAUSE)
            call()
            for _ in range(CALLS):
                before = time.perf_counter(), time.process_time()
                call()
                after = time.perf_counter(), time.process_time()
                times[key].append((after[0] - before[0], after[1] - before[1]))
        rounds += 1
    return times


def measure(options: argparse.Namespace, networks: Mapping[str, nn.Module]) -> list[Row]:
    """Measure all networks at one size; write peers.json, .csv and .png."""
    size = parse_size(options.size[0])
    images = np.random.default_rng(0).normal(size=(1, 3, *size)).astype(np.float32)
    model_info = ModelInfo(InputConvention(size=size))
    cores_used = (1, 2)[: cores()]
    bundles = open_bundles(options.bundle or (), cores_used, size, networks)
    found = list(peers(networks, size))
    calls: dict[tuple[str, str, int], Callable[[], Any]] = {}
    for threads in cores_used:
        # The runtime itself: the interface above it wants maps of logits alone.
        for peer, backend in itertools.product(found, ENGINES):
            engine = ENGINES[backend](peer.graph, model_info, threads)
            calls[peer.name, backend, threads] = partial(engine._run, images)
    calls |= {key: partial(engine._run, images) for key, engine in bundles.items()}
    times = in_turn(calls, options.seconds)
    medians = {key: 1e3 * np.median(pairs, axis=0) for key, pairs in times.items()}
    known = {peer.name: peer for peer in found}
    rows = []
    for network, backend in dict.fromkeys(key[:2] for key in calls):
        elapsed, processor = map(float, medians[network, backend, 1])
        row: Row = {"network": network, "backend": backend}
        row |= {"one_core_ms": round(elapsed, 3), "one_core_cpu_ms": round(processor, 3)}
        if 2 in cores_used:
            both = float(medians[network, backend, 2][0])
            row |= {"two_cores_ms": round(both, 3), "two_cores_fps": round(1e3 / both, 1)}
        if peer := known.get(network):
            if peer.encoder:
                encoder = float(medians[peer.encoder, backend, 1][0])
                row["times_encoder"] = round(elapsed / encoder, 2)
            row |= {"parameters": peer.parameters, "dice": peer.dice}
        rows.append(row | {"runs": len(times[network, backend, 1])})
    on = machine(options.device)
    write(options.out, "peers", on, rows, size=options.size[0])
    draw([row for row in rows if row["network"] in known], on, options.out / "peers.png")
    show("Side by side, one image", rows, COLUMNS)
    return rows


def open_bundles(
    folders: Sequence[str], threads: Sequence[int], size: tuple[int, int], taken: Collection[str]
) -> dict[tuple[str, str, int], Any]:
    """Return the bundles' engines by (folder's name, backend, threads).

    Raises:
        UserError: One is no bundle, takes another size, or is called as another row.
    """
    names = [Path(folder).name for folder in folders]
    engines = {}
    for folder, name in zip(folders, names, strict=True):
        if name in taken or names.count(name) > 1:
            raise UserError(f"two rows would be called {name}; rename the bundle {folder}")
        for count in threads:
            engine = load_engine(folder, threads=count)
            if engine.convention.size != size:
                took, others = ("x".join(map(str, one)) for one in (engine.convention.size, size))
                raise UserError(f"{folder} takes {took}, the others {others}; give --size {took}")
            engines[name, engine.backend, count] = engine
    return engines


def draw(rows: list[Row], on: Mapping[str, Any], target: Path) -> None:
    """Write the picture: Dice against milliseconds on one core; a line where Dice is not known."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for index, row in enumerate(r for r in rows if r["backend"] == "openvino"):
        color = f"C{index}"
        if row["dice"] is None:
            axes.axvline(row["one_core_ms"], color=color, linestyle="--", label=row["network"])
        else:
            axes.plot(row["one_core_ms"], row["dice"], "o", color=color, label=row["network"])
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds of one core, OpenVINO float32")
    axes.set_ylabel("Dice, 120 images of Kvasir-SEG")
    axes.set_title(f"{on['device']}, {on['date']} UTC; dashed: speed alone", fontsize=9)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    with replacing(target) as tmp_path:
        figure.savefig(tmp_path, dpi=130, format="png")
