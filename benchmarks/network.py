"""One training step and one inference, ours against the straightforward form, in the same run.

The straightforward form is the published one written down literally: the Stage I head upsamples
every feature before its 1x1 convolution, CDFA unfolds its windows, multiplies 9 x 9 matrices and
folds, TeLU is three eager operators, and inference runs the training network with its auxiliary
head and unfolded BatchNorm. Same weights, same input; the logits' largest difference is reported.

    python -m benchmarks.network --out FOLDER [--device cuda] [--quick] [--preset edge]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import machine, parser, percentiles, show, timed, write
from medisseg.errors import UserError, command
from medisseg.losses.objective import StageOneObjective, StageTwoObjective
from medisseg.model.create import create_model
from medisseg.model.inference import for_inference
from medisseg.model.network import StageOneHead

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


def peak(run: Callable[[], Any], device: torch.device) -> int | None:
    """Largest number of bytes a call holds on a GPU; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device)


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
    about = {"preset": args.preset, "stage": stage, "size": "x".join(map(str, args.size))}
    about |= {"batch": args.batch, "precision": args.precision}
    training = about | {"what": "training step"} | _pair(step, step, args, device)
    model.eval()
    inference = for_inference(model, portable=device.type == "cpu")

    @torch.no_grad()
    def answer(network: nn.Module) -> Tensor:
        with amp():
            return network(x)

    with straightforward():
        expected = answer(model).float()
    difference = (answer(inference).float() - expected).abs().max().item()
    pair = _pair(lambda: answer(inference), lambda: answer(model), args, device)
    return [
        training,
        about | {"what": "inference"} | pair | {"largest_logit_difference": difference},
    ]


def _pair(
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    args: argparse.Namespace,
    device: torch.device,
) -> Result:
    """Times of both forms in milliseconds and, on a GPU, what they hold at most in bytes."""
    on = device.type
    mine = timed(ours, args.seconds, args.warmup, on)
    mine_peak = peak(ours, device)
    with straightforward():
        literal = timed(theirs, args.seconds, args.warmup, on)
        literal_peak = peak(theirs, device)
    middle, literal_middle = percentiles(mine)["p50_ms"], percentiles(literal)["p50_ms"]
    return {
        **percentiles(mine),
        "straightforward_ms": literal_middle,
        "speedup": round(literal_middle / middle, 3),
        "images_per_s": round(1e3 * args.batch / middle, 2),
        "peak_bytes": mine_peak,
        "straightforward_peak_bytes": literal_peak,
    }


def side(text: str) -> tuple[int, int]:
    """Read HxW."""
    height, _, width = text.partition("x")
    return int(height), int(width)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    options = parser("network", __doc__)
    options.add_argument("--preset", help="default: edge on a CPU, medisseg-r50 on a GPU")
    options.add_argument("--stage", type=int, choices=(1, 2), help="default: both")
    options.add_argument("--size", type=side, metavar="HxW", help="default: 256x256")
    options.add_argument("--batch", type=int, help="default: 2 on a CPU, 16 on a GPU")
    options.add_argument("--precision", choices=("fp32", "bf16"), help="default: both on a GPU")
    args = options.parse_args(argv)
    on = machine(args.device)
    gpu = args.device == "cuda"
    args.preset = args.preset or ("medisseg-r50" if gpu and not args.quick else "edge")
    args.size = args.size or ((64, 64) if args.quick else (256, 256))
    args.batch = args.batch or (16 if gpu and not args.quick else 2)
    args.seconds, args.warmup = (0.0, 1) if args.quick else (10.0 if gpu else 20.0, 2)
    if args.batch < 2:
        raise UserError(f"--batch {args.batch}: BatchNorm trains on 2 images or more")
    rows: list[Result] = []
    for precision in (args.precision,) if args.precision else ("fp32", "bf16")[: 2 if gpu else 1]:
        args.precision = precision
        for stage in (1, 2):
            if args.stage in (None, stage):
                rows += measure(args, stage)
                write(args.out, "network", on, rows)
    show("Network, ours beside the straightforward form", rows)
    return 0


if __name__ == "__main__":
    command(main)
