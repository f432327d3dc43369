"""Latency of a network in every backend that runs here, beside the straightforward export.

    python -m benchmarks.inference --out FOLDER [--device cuda] [--quick] [--preset edge ...]

The straightforward export is the published network written down literally: windows unfolded and
folded (Col2Im), TeLU in three operators, training heads kept, BatchNorm apart; on a GPU it runs in
eager PyTorch. Both get the same weights and input, and how far each backend's logits are from
PyTorch's in float32 stands beside its time. The speed of light is what this device reached in this
run, in a matrix product of the same precision and in a copy: measured, not from a data sheet.

On a CPU a latency is from numpy to numpy. On a GPU images and logits lie on the device;
``host_p50_ms`` is from numpy to numpy there. A backend that cannot run says why in its row.
"""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import peers
from benchmarks.common import machine, parser, percentiles, show, timed, write
from benchmarks.network import straightforward
from export.builders import registry
from export.builders.spec import Spec
from export.graph import export_graph, trace
from export.mixed_precision import prepare
from export.model_info import ModelInfo, parse_size
from export.runtime.engine import BaseEngine, Images, Outputs
from export.runtime.onnx_engine import OnnxEngine
from export.runtime.openvino_engine import OpenVinoEngine
from export.runtime.torch_engine import AUTOTUNING, FREEZING, TorchEngine
from export.steps import Steps
from medisseg.convention import InputConvention
from medisseg.errors import UserError, command
from medisseg.model.baselines import BASELINES
from medisseg.model.create import create_model
from medisseg.model.inference import for_inference
from medisseg.model.loading import load_checkpoint
from medisseg.model.network import Network
from medisseg.model.options import PRESETS

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COMPILED: dict[str, dict[str, bool] | None] = {
    f"pytorch, CUDA graph, torch.compile{name}": inductor
    for name, inductor in (
        ("", {}),
        (", freezing", FREEZING),
        (", freezing, autotuned", FREEZING | AUTOTUNING),
    )
}
PAPER_FPS = 59.6  # RTX 4090, batch 4, 256 x 256, forward pass only
COLUMNS = ("network", "backend", "precision", "size", "batch", "p50_ms", "p95_ms", "p99_ms",
           "host_p50_ms", "fps", "percent_of_light", "logit_error", "failed")  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One backend in one precision; ``opened`` raises where it cannot run."""

    backend: str
    precision: str
    opened: Callable[[], BaseEngine]


@dataclass(frozen=True)
class Work:
    """What one image costs: FLOP, elements into and out of convolutions, parameters."""

    flop: float
    moved: int
    parameters: int


class Straight(nn.Module):
    """The training network with BatchNorm in evaluation mode: every head answers."""

    def __init__(self, model: nn.Module, heads: bool = True) -> None:
        super().__init__()
        self.model = model.eval()
        self.heads = heads

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """[N, 3, H, W] -> logits and, with ``heads``, the auxiliary maps."""
        self.model.training = True  # this module alone: its children stay in evaluation mode
        answer = self.model(x)
        maps = (answer.foreground, answer.background, answer.uncertainty)
        return (answer.logits, *(m for m in maps if m is not None)) if self.heads else answer.logits


class StraightEngine(TorchEngine):
    """The straightforward network in eager PyTorch on a GPU: no graph, no kernels of ours."""

    def _run(self, batch: Images) -> Outputs:
        answers = self.run_on_device(torch.from_numpy(batch).to(self.device))
        return {name: answer.float().cpu().numpy() for name, answer in answers.items()}

    @torch.inference_mode()
    def run_on_device(self, batch: Any) -> dict[str, torch.Tensor]:
        """Return the logits of images on the GPU."""
        with straightforward():
            return self._forward(batch)


def straight_graph(model: Network, size: tuple[int, int]) -> bytes:
    """Return the straightforward export's graph."""
    names = ("logits", "foreground", "background", "uncertainty")[: 4 if model.stage == 2 else 1]
    with straightforward():
        return trace(Straight(copy.deepcopy(model)), size, names, 20).SerializeToString()


def work_of(network: nn.Module, size: tuple[int, int]) -> Work:
    """Count what one image costs; a multiply-add is two FLOP.

    Pointwise operators count as fused into the convolutions: they move nothing.
    """
    from torch.utils.flop_counter import FlopCounterMode

    moved = 0

    def count(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal moved
        moved += inputs[0].numel() + output.numel()

    for part in network.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            part.register_forward_hook(count)
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        network.to("meta")(torch.empty(1, 3, *size, device="meta"))
    parameters = sum(p.numel() for p in network.parameters())
    return Work(counter.get_total_flops(), moved, parameters)


def speed_of_light(options: argparse.Namespace, precision: str) -> tuple[float, float]:
    """Return FLOP/s and bytes/s that this device reaches in a product of matrices and in a copy."""
    device, seconds = options.device, options.seconds / 5
    side = 8192 if device == "cuda" else 1536
    left = torch.randn(side, side, device=device).to(TYPES[precision])
    data = torch.empty((1 << 28) if device == "cuda" else (1 << 26), device=device)
    target = torch.empty_like(data)
    product = min(timed(lambda: left @ left, seconds, 1, device))
    copied = min(timed(lambda: target.copy_(data), seconds, 1, device))
    return 2 * side**3 / product, 2 * data.numel() * data.element_size() / copied


def cpu_cases(model: Network, model_info: ModelInfo, options: argparse.Namespace) -> Iterator[Case]:
    """Yield what runs on a CPU, and the straightforward export in the same runtimes."""
    size, threads = model_info.convention.size, options.threads
    network = for_inference(model, portable=False)
    yield Case("pytorch", "fp32", lambda: TorchEngine(network, model_info, "cpu", "fp32", threads))
    graphs = {"": lambda: export_graph(for_inference(model), size).SerializeToString()}
    if not options.no_peer:
        graphs[", straightforward"] = lambda: straight_graph(model, size)
    for suffix, made in graphs.items():
        graph = made()
        yield Case(f"onnx{suffix}", "fp32", partial(OnnxEngine, graph, model_info, "fp32", threads))
        for precision in ("fp32", "bf16"):
            opened = partial(OpenVinoEngine, graph, None, model_info, precision, threads)
            yield Case(f"openvino{suffix}", precision, opened)


def gpu_cases(model: Network, model_info: ModelInfo, options: argparse.Namespace) -> Iterator[Case]:
    """Yield PyTorch in its forms on a GPU, and the TensorRT family where it is installed."""

    def ours(precision: str, inductor: Mapping[str, Any] | None) -> BaseEngine:
        network = for_inference(model, portable=False)
        compiled = inductor is not None
        return TorchEngine(
            network, model_info, "cuda", precision, compiled=compiled, inductor=inductor
        )

    def literal(precision: str) -> BaseEngine:
        network = Straight(copy.deepcopy(model), heads=False)
        return StraightEngine(network, model_info, "cuda", precision)

    for precision in ("fp16", "bf16", "fp32"):
        for name, inductor in ({"pytorch, CUDA graph": None} | COMPILED).items():
            yield Case(name, precision, partial(ours, precision, inductor))
        if not options.no_peer:
            yield Case("pytorch, straightforward", precision, partial(literal, precision))


def tensorrt_cases(
    model: Network, model_info: ModelInfo, options: argparse.Namespace
) -> Iterator[Case]:
    """Yield TensorRT, TensorRT for RTX and Torch-TensorRT in FP16, built on the spot."""

    def opened(backend: str) -> BaseEngine:
        if reason := registry.available(backend):
            raise UserError(reason)
        if options.device != "cuda":
            raise UserError(f"{backend} engines run on NVIDIA GPUs; use --device cuda")
        shape = (3, *model_info.convention.size)
        network = for_inference(model)
        graph = export_graph(network, model_info.convention.size)
        prepared = replace(prepare(graph, "fp16", [pictures(1, shape)]), network=network)
        spec = Spec("fp16", (1, 1, model_info.max_batch), "images", shape)
        built = registry.BUILDERS[backend](prepared, spec, Steps(quiet=True).task)
        if built.open is None:
            raise UserError(f"{backend} does not build for this GPU")
        return built.open(model_info)

    for backend in ("tensorrt", "tensorrt-rtx", "torch-tensorrt"):
        yield Case(backend, "fp16", partial(opened, backend))


def lively(model: Network) -> Network:
    """Give an untrained network BatchNorm statistics: without, its values leave FP16's range."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None  # an average over all batches
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(2, 3, 96, 96))
    return model.eval()


def network_of(name: str) -> Network:
    """Return a packaged checkpoint, or an untrained network of a preset."""
    if name not in (*PRESETS, *BASELINES):
        return load_checkpoint(name)
    return lively(create_model(name))


def pictures(count: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return the same random images [count, 3, H, W] every time."""
    return np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32)


def measure(engine: BaseEngine, images: np.ndarray, options: argparse.Namespace) -> dict[str, Any]:
    """Return the percentiles of a batch's latency in milliseconds, and how many runs there were."""
    run_on_device = getattr(engine, "run_on_device", None)
    infer: Callable[[], Any] = lambda: engine.infer(images)  # noqa: E731
    if options.device != "cuda" or run_on_device is None:
        times = timed(infer, options.seconds, 1)
        return {**percentiles(times), "runs": len(times)}
    batch = torch.from_numpy(images).cuda()
    times = timed(lambda: run_on_device(batch), options.seconds, 3, "cuda")
    host = percentiles(timed(infer, options.seconds, 3))
    return {**percentiles(times), "host_p50_ms": host["p50_ms"], "runs": len(times)}


def rows(name: str, model: Network, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield one result for each backend, precision, size and batch of a network."""
    cases = gpu_cases if options.device == "cuda" else cpu_cases
    lights: dict[str, tuple[float, float]] = {}
    for text in options.size:
        size = parse_size(text)
        model_info = ModelInfo(InputConvention(size=size), max_batch=max(options.batch))
        images = pictures(max(options.batch), (3, *size))
        work = work_of(for_inference(model), size)
        with torch.inference_mode():
            exact = model(torch.from_numpy(images[:1])).numpy()
        both = cases(model, model_info, options), tensorrt_cases(model, model_info, options)
        for case in itertools.chain(*both):
            if case.precision not in options.precision:
                continue
            about = {"network": name, "backend": case.backend, "precision": case.precision}
            about["size"] = text
            try:
                if case.precision not in lights:
                    lights[case.precision] = speed_of_light(options, case.precision)
                for found in results(case, images, exact, work, lights[case.precision], options):
                    yield about | found
            except Exception as reason:  # whatever a backend raises is its row, not the end
                yield about | {"failed": (str(reason).strip() or repr(reason)).splitlines()[0]}
            torch.compiler.reset()  # what was compiled for this case counts no longer
            gc.collect()


def results(
    case: Case,
    images: np.ndarray,
    exact: np.ndarray,
    work: Work,
    light: tuple[float, float],
    options: argparse.Namespace,
) -> Iterator[dict[str, Any]]:
    """Yield each batch's latencies, and how far the answer is from PyTorch's in float32."""
    with case.opened() as engine:
        # Relative to the logits' spread: an untrained network's are small.
        error = np.abs(engine.infer(images[:1]) - exact).max() / exact.std()
        for count in options.batch:
            found = measure(engine, images[:count], options)
            bound = share(found["p50_ms"], count, work, light, BYTES[case.precision])
            about = {"batch": count, "engine": engine.name, "logit_error": float(error)}
            yield about | found | bound


def share(
    p50: float, count: int, work: Work, light: tuple[float, float], width: int
) -> dict[str, float]:
    """Return images a second, FLOP and bytes of a batch, and the share of the speed of light."""
    flop, moved = work.flop * count, (work.moved * count + work.parameters) * width
    bound = 1e3 * max(flop / light[0], moved / light[1])
    return {
        "fps": round(1e3 * count / p50, 3),
        "flop": flop,
        "bytes": moved,
        "bound_ms": round(bound, 6),
        "percent_of_light": round(100 * bound / p50, 2),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    made = parser("inference", __doc__)
    add = made.add_argument
    add("--preset", nargs="+", help="untrained networks: speed does not depend on weights")
    add("--checkpoint", help="file or name, instead of --preset")
    add("--size", nargs="+", default=["256x256", "352x352"], metavar="HxW")
    add("--batch", nargs="+", type=int, default=[1, 4])
    add("--precision", nargs="+", choices=tuple(BYTES), default=list(BYTES))
    add("--seconds", type=float, default=5.0, help="time a case is measured for")
    add("--threads", type=int, help="CPU threads; default all cores")
    add("--peers", action="store_true", help="networks side by side: one core, two cores, a plot")
    add("--bundle", nargs="+", metavar="FOLDER", help="with --peers: bundles as further rows")
    add("--no-peer", action="store_true", help="leave the straightforward export out")
    options = made.parse_args(argv)
    if options.bundle and not options.peers:
        raise UserError("--bundle goes with --peers")
    on = machine(options.device)
    # A GPU's time may be bounded from outside: what is asked for most comes first there.
    networks = options.preset or ["edge", "medisseg-r50"][:: -1 if options.device == "cuda" else 1]
    stage = 2
    if options.quick:  # Stage I of the small network: every backend, seconds instead of minutes
        networks, options.size, options.batch = ["edge"], ["64x64"], [1, 2]
        options.seconds, stage = 0.0, 1
    torch.manual_seed(0)
    if options.peers:
        names = options.preset or peers.NETWORKS[: 1 if options.quick else None]
        peers.measure(options, {name: network_of(name) for name in names})
        return 0
    done: list[dict[str, Any]] = []
    for name in [options.checkpoint] if options.checkpoint else networks:
        ours = load_checkpoint(name) if options.checkpoint else lively(create_model(name, stage))
        for row in rows(name, ours, options):
            done.append(row)
            said = row.get("failed") or f"batch {row['batch']}, {row['p50_ms']:.4g} ms"
            print(f"{name} {row['size']} {row['backend']} {row['precision']}: {said}", flush=True)
            write(options.out, "inference", on, done, paper_fps=PAPER_FPS)
    show("Inference, every backend beside the straightforward export", done, COLUMNS)
    return 0


if __name__ == "__main__":
    command(main)
