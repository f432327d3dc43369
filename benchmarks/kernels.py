"""TeLU, window mixing and dispersive loss: eager, torch.compile and ours, in one run.

    python -m benchmarks.kernels --out FOLDER [--device cuda] [--quick] [--only telu]

Every provider gets the same input; ``difference`` is how far its answer (or gradient) is from the
eager one's, relative to that one's largest entry. ``percent_of_bound`` compares with the device's
memory bandwidth as published (a CPU: with a copy measured in this run), or, where arithmetic is
the bound, with a float32 matrix product measured in this run, which tensor cores can exceed.
On a GPU benchmarks/replay.py says how a call is timed; benchmarks/compare.py compares two runs.
``peak_bytes`` is what a forward and backward pass holds above its input.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._functorch import config as functorch

from benchmarks import plot
from benchmarks.common import machine, parser, percentiles, show, timed, write
from benchmarks.kernels_cases import COMPILED, EAGER, OURS, Case, Provider, cases
from benchmarks.replay import ROTATED, Cuda, copies_for, replayed, size_of
from medisseg.errors import command

Result = dict[str, Any]
BANDWIDTH = {  # GB/s, by a part of the device's name
    "H200": 4800,
    "H100": 3350,
    "A100": 2039,
    "RTX 4090": 1008,
    "Orin": 205,
}
SHOWN = (
    *("op", "dtype", "shape", "mode", "provider", "p50_ms", "gb_per_s", "percent_of_bound"),
    *("peak_bytes", "difference", "failed"),
)
TIMING = f"calls in one replayed CUDA graph, inputs rotated over {ROTATED} times the L2 cache"


def limits(device: str, name: str, quick: bool) -> dict[str, float]:
    """Return GB/s of the bound and of a copy, and GFLOP/s of a float32 product, of this device."""
    numbers = 1 << (18 if quick else 28 if device == "cuda" else 25)
    side = 256 if quick else 8192 if device == "cuda" else 1536
    source = torch.randn(numbers, device=device)
    target, left = torch.empty_like(source), torch.randn(side, side, device=device)
    seconds = 0.0 if quick else 0.5
    copy = min(timed(lambda: target.copy_(source), seconds, device=device))
    product = min(timed(lambda: left @ left, seconds, device=device))
    copied = 8 * numbers / copy / 1e9
    published = [value for part, value in BANDWIDTH.items() if part in name]
    bound = published[0] if device == "cuda" and published else copied
    return {
        "bound_gb_per_s": round(bound, 1),
        "copy_gb_per_s": round(copied, 1),
        "product_gflop_per_s": round(2 * side**3 / product / 1e9, 1),
    }


def measure(case: Case, bounds: dict[str, float], args: argparse.Namespace) -> Iterator[Result]:
    """Yield a row for each provider and direction; what fails is a row that says why."""
    inputs = case.inputs()
    about = {"op": case.op, "dtype": str(case.dtype).removeprefix("torch."), "shape": case.shape}
    eager: list[Tensor] = []
    for name, provider in case.providers.items():
        if name == COMPILED and args.no_compile:
            continue
        row = about | {"provider": name}
        try:
            eager = eager or (answers(provider, inputs) if name == EAGER else [])
            yield from _provider(row, case, provider, inputs, eager, bounds, args)
        except Exception as error:  # a provider that cannot is a result; the others go on
            yield row | {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        gc.collect()
        if args.device == "cuda":
            torch.cuda.empty_cache()
    torch.compiler.reset()


def _provider(
    row: Result,
    case: Case,
    provider: Provider,
    inputs: tuple[Tensor, ...],
    eager: list[Tensor],
    bounds: dict[str, float],
    args: argparse.Namespace,
) -> Iterator[Result]:
    held = peak(whole(provider, inputs), args.device)
    got = answers(provider, inputs) if eager else []
    apart = [difference(mine, want) for mine, want in zip(got, eager, strict=True)]
    away = (apart[0], max(apart[1:])) if apart else (None, None)
    del got
    for index, (mode, make) in enumerate((("forward", forward), ("backward", backward))):
        times = times_of(make, provider, inputs, args)
        found = {"mode": mode} | percentiles(times) | rates(case, index, times, bounds)
        yield row | found | {"peak_bytes": held, "difference": away[index]}


def rates(case: Case, index: int, times: Sequence[float], bounds: dict[str, float]) -> Result:
    """Return bytes, GB/s, GFLOP/s and percent of the bound and of a copy."""
    middle = percentiles(times)["p50_ms"] / 1e3
    moved = case.bytes[index]
    found: Result = {"bytes": moved, "gb_per_s": round(moved / middle / 1e9, 2)}
    if case.flop:
        speed = case.flop[index] / middle / 1e9
        share = 100 * speed / bounds["product_gflop_per_s"]
        return found | {"gflop_per_s": round(speed, 1), "percent_of_bound": round(share, 1)}
    copied = round(100 * found["gb_per_s"] / bounds["copy_gb_per_s"], 1)
    share = round(100 * found["gb_per_s"] / bounds["bound_gb_per_s"], 1)
    return found | {"percent_of_bound": share, "percent_of_copy": copied}


def forward(provider: Provider, inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
    """Return the forward pass alone."""

    @torch.no_grad()
    def run() -> Tensor:
        return provider(*inputs)

    return run


def backward(provider: Provider, inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
    """Return the backward pass alone; the forward one is done here."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = provider(*leaves)
    gradient = torch.ones_like(out)
    return lambda: torch.autograd.grad(out, leaves, gradient, retain_graph=True)


def whole(provider: Provider, inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
    """Return forward and backward together."""

    def run() -> Any:
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = provider(*leaves)
        return torch.autograd.grad(out, leaves, torch.ones_like(out))

    return run


def answers(provider: Provider, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the output and the gradients by the inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = provider(*leaves)
    weights = torch.linspace(0.5, 1.5, out.numel(), device=out.device).view(out.shape)
    return [out.detach(), *torch.autograd.grad(out, leaves, weights.to(out.dtype))]


def difference(got: Tensor, want: Tensor) -> float:
    """Return the largest difference relative to the largest wanted entry."""
    want = want.float()
    apart = (got.float() - want).abs().max() / want.abs().max().clamp(min=1e-30)
    return float(f"{float(apart):.3g}")


def times_of(
    make: Callable[[Provider, tuple[Tensor, ...]], Callable[[], Any]],
    provider: Provider,
    inputs: tuple[Tensor, ...],
    args: argparse.Namespace,
) -> list[float]:
    """Return the seconds of calls: on a GPU within a replayed graph, over inputs out of cache."""
    if args.device != "cuda":
        return timed(make(provider, inputs), args.seconds, 1 if args.quick else 3)
    gpu = Cuda()
    copies = copies_for(size_of(inputs), gpu.l2_bytes)
    return replayed(
        lambda _: make(provider, tuple(x.clone() for x in inputs)), copies, gpu, args.seconds
    )


def peak(run: Callable[[], Any], device: str) -> int | None:
    """Return the bytes a call holds at most above what was held before; None where unknown."""
    run()  # compiled and warm
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    gc.collect()
    with contextlib.suppress(AttributeError):  # glibc alone keeps what was freed
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    except OSError:
        return None
    before = _status("VmRSS")
    run()
    return max(_status("VmHWM") - before, 0)


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {key}")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write after every row, print and plot; 1 if one of ours failed."""
    options = parser("kernels", __doc__)
    options.add_argument("--only", default="", help="part of an operator's name")
    options.add_argument("--seconds", type=float, help="time a row is measured for")
    options.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    args = options.parse_args(argv)
    on = machine(args.device)
    args.no_compile |= args.quick and args.device == "cpu"
    if args.seconds is None:
        args.seconds = 0.0 if args.quick else 0.3 if args.device == "cuda" else 1.0
    on |= {"threads": torch.get_num_threads()} | limits(args.device, on["device"], args.quick)
    if args.device == "cuda":
        on["timing"] = TIMING
    torch.manual_seed(0)
    rows: list[Result] = []
    # A compiled backward pass may be called again only if it keeps what it was given.
    with functorch.patch(donated_buffer=False):
        for case in cases(args.device, args.quick):
            for row in measure(case, on, args) if args.only in case.op else ():
                rows.append(row)
                write(args.out, "kernels", on, rows)
    show("Kernels", rows, SHOWN)
    plot.bars(args.out / "kernels.json", args.out / "kernels.png")
    return int(any("failed" in row and row["provider"] == OURS for row in rows))


if __name__ == "__main__":
    command(main)
