"""One training step and one inference, ours against the straightforward form, in the same run.

The straightforward form is the published one written down literally: the Stage I head upsamples
every feature before its 1x1 convolution, CDFA unfolds its windows, multiplies 9 x 9 matrices and
folds, TeLU is three eager operators, and inference runs the training network with its auxiliary
head and unfolded BatchNorm. Same weights, same input; the logits' largest difference is reported.

    python benchmarks/network.py --preset edge --batch 2 --out network.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medisseg.errors import command
from medisseg.files import replacing
from medisseg.losses.objective import StageOneObjective, StageTwoObjective
from medisseg.model.network import StageOneHead, create_model

Result = dict[str, Any]


def literal_telu(x: Tensor) -> Tensor:
    """x tanh(exp(x)), three eager operators."""
    return x * torch.tanh(torch.exp(x))


def literal_window_mix(logits: Tensor, values: Tensor) -> Tensor:
    """CDFA's mixing as published: unfold, matrix product a position and head, fold."""
    n, channels, h, w = values.shape
    heads = logits.shape[1] // 81
    attention = logits.permute(0, 2, 3, 1).reshape(n, h * w, heads, 9, 9).softmax(-1)
    windows = F.unfold(values, 3, padding=1).reshape(n, heads, channels // heads, 9, h * w)
    mixed = attention.permute(0, 2, 1, 3, 4) @ windows.permute(0, 1, 4, 3, 2)
    mixed = mixed.permute(0, 1, 4, 3, 2).reshape(n, channels * 9, h * w)
    return F.fold(mixed, (h, w), 3, padding=1)


def literal_head(self: Any, features: list[Tensor], size: tuple[int, int]) -> tuple[Tensor, ...]:
    """The Stage I head as published: upsample first, project at the input's size."""
    maps = []
    for x, block, gate in zip(features, self.projections, self.gates, strict=True):
        full = F.interpolate(x, size, mode="bilinear", align_corners=True)
        maps.append(gate(block(full)))
    joined = torch.cat(maps, 1)
    return self.logits(joined), self.projections[-1].project(features[-1]), joined


@contextmanager
def straightforward() -> Iterator[None]:
    """Replace our forms by the literal ones."""
    with (
        mock.patch("medisseg.model.cdfa.window_mix", literal_window_mix),
        mock.patch("medisseg.model.blocks.telu", literal_telu),
        mock.patch.object(StageOneHead, "forward", literal_head),
    ):
        yield


def seconds(run: Callable[[], Any], repeat: int, device: torch.device) -> float:
    """Median wall time of ``run`` after one call to warm up."""
    times = []
    for index in range(repeat + 1):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        if index:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak(run: Callable[[], Any], device: torch.device) -> int | None:
    """Largest number of bytes a call holds on a GPU; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def training_step(model: nn.Module, stage: int, x: Tensor, target: Tensor, amp: Any) -> Callable:
    """Return a function that does one step: forward, objective, backward, Adam."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-6)
    objective = StageOneObjective() if stage == 1 else StageTwoObjective()

    def step() -> None:
        with amp():
            output = model(x)
            # Stage I trains on two views.
            views = (output, model(x)) if stage == 1 else (output,)
            total = objective(*views, target)[0]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    return step


def measure(args: argparse.Namespace, stage: int) -> list[Result]:
    """Time one stage in both forms."""
    device = torch.device(args.device)
    torch.manual_seed(0)
    model = create_model(args.preset, stage=stage).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(args.batch, 3, *args.size, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    target = torch.rand(args.batch, *args.size, device=device) > 0.8
    dtype = {"fp32": None, "bf16": torch.bfloat16}[args.precision]

    def amp() -> Any:
        return torch.autocast(device.type, dtype, enabled=dtype is not None)

    step = training_step(model.train(), stage, x, target, amp)
    results = [_pair("training step", stage, step, step, args.repeat, device)]
    model.eval()
    inference = model.for_inference(portable=device.type == "cpu")

    @torch.no_grad()
    def answer(network: nn.Module) -> Tensor:
        with amp():
            return network(x)

    with straightforward():
        expected = answer(model).float()
    difference = (answer(inference).float() - expected).abs().max().item()
    pair = _pair(
        "inference", stage, lambda: answer(inference), lambda: answer(model), args.repeat, device
    )
    return [*results, pair | {"largest_logit_difference": difference}]


def _pair(
    what: str,
    stage: int,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    repeat: int,
    device: torch.device,
) -> Result:
    ours_s, ours_peak = seconds(ours, repeat, device), peak(ours, device)
    with straightforward():
        literal_s, literal_peak = seconds(theirs, repeat, device), peak(theirs, device)
    return {
        "what": what,
        "stage": stage,
        "ours_s": ours_s,
        "straightforward_s": literal_s,
        "speedup": literal_s / ours_s,
        "ours_peak_bytes": ours_peak,
        "straightforward_peak_bytes": literal_peak,
    }


def side(text: str) -> tuple[int, int]:
    """Read HxW."""
    height, _, width = text.partition("x")
    return int(height), int(width)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--preset", default="medisseg-r50", help="default: medisseg-r50")
    parser.add_argument("--stage", type=int, choices=(1, 2), help="default: both")
    parser.add_argument("--size", type=side, default=(256, 256), metavar="HxW")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3, help="timed calls; the median is kept")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args(argv)
    results = [r for stage in (1, 2) if args.stage in (None, stage) for r in measure(args, stage)]
    on = torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.machine()
    report = {
        "preset": args.preset,
        "size": list(args.size),
        "batch": args.batch,
        "precision": args.precision,
        "device": f"{on}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "results": results,
    }
    print(f"{args.preset}, batch {args.batch}, {args.size}, {args.precision}, {report['device']}")
    for r in results:
        print(
            f"  stage {r['stage']} {r['what']:14} ours {r['ours_s']:.3f} s, straightforward "
            f"{r['straightforward_s']:.3f} s: {r['speedup']:.2f}x"
        )
    if args.out:
        with replacing(args.out) as beside:
            beside.write_text(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    command(main)
