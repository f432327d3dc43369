"""What every preset and every attention unit costs: the comparison of the paper's Tables 5 and 6.

    python -m benchmarks.costs --out benchmarks/results/cpu --count-only
    python -m benchmarks.costs --out FOLDER [--device cuda] [--size 256x256]
    python -m benchmarks.costs --out FOLDER --count-only --preset module:pranet.PraNet

Parameters as trained and as run (auxiliary head left out, BatchNorm folded), and FLOP of one image,
a multiply-add being two; with time, images a second at batch 1 in eager PyTorch. Time is worth
something on a quiet machine alone, so that one whose load is above half a core is refused without
``--busy``, which the file then says.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.common import machine, parser, percentiles, show, timed, write
from benchmarks.inference import work_of
from benchmarks.network import side
from medisseg.errors import UserError, command
from medisseg.model.attention import ATTENTIONS
from medisseg.model.baselines import BASELINES
from medisseg.model.create import create_model
from medisseg.model.inference import for_inference
from medisseg.model.options import PRESETS

QUIET = 0.5  # load average of the last minute


def networks(quick: bool, chosen: Sequence[str] = ()) -> Iterator[tuple[str, str, str, nn.Module]]:
    """Yield table, row, attention unit and network of stage II, one at a time."""
    for name in chosen:
        unit = PRESETS[name].attention if name in PRESETS else ""
        yield "presets", name, unit, create_model(name)
    if chosen:
        return
    for name in ("edge-lite",) if quick else (*PRESETS, *BASELINES):
        unit = PRESETS[name].attention if name in PRESETS else ""
        yield "presets", name, unit, create_model(name)
    for unit in ("none", "cbat") if quick else ATTENTIONS:
        yield (
            "attention units",
            "edge-lite" if quick else "medisseg-r50",
            unit,
            create_model("edge-lite" if quick else "medisseg-r50", attention=unit),
        )


def cost(model: nn.Module, args: argparse.Namespace) -> dict[str, Any]:
    """Return a network's parameters, GFLOP and, unless they are left out, its times."""
    trained = sum(parameter.numel() for parameter in model.parameters())
    run = for_inference(model)
    times: dict[str, float | None] = {"p50_ms": None, "p95_ms": None, "images_per_s": None}
    if not args.count_only:
        device = torch.device(args.device)
        fast = for_inference(model, portable=False).to(device)
        image = torch.randn(1, 3, *args.size, device=device)
        with torch.inference_mode():
            found = timed(lambda: fast(image), 0.0 if args.quick else 5.0, 3, args.device)
        times |= {key: value for key, value in percentiles(found).items() if key in times}
        times["images_per_s"] = round(1e3 / percentiles(found)["p50_ms"], 2)
    work = work_of(run, args.size)
    counts = {"trained_parameters": trained, "parameters": work.parameters}
    return {**counts, "gflop": round(work.flop / 1e9, 3), **times}


def main(argv: Sequence[str] | None = None) -> int:
    """Count, time, print and write."""
    options = parser("costs", __doc__)
    options.add_argument("--size", type=side, default=(256, 256), metavar="HxW")
    options.add_argument("--count-only", action="store_true", help="parameters and FLOP, no times")
    options.add_argument("--busy", action="store_true", help="time although the machine is busy")
    options.add_argument(
        "--preset", nargs="+", default=[], help="these alone; a class as module:package.Class"
    )
    args = options.parse_args(argv)
    load = os.getloadavg()[0]
    if load > QUIET and not (args.count_only or args.busy or args.quick):
        raise UserError(
            f"the load is {load:.1f}; times need a quiet machine (at most {QUIET}): wait, take "
            "--count-only, or --busy for times that are no one's"
        )
    about = machine(args.device) | {"timed": not args.count_only, "busy": load > QUIET}
    rows: list[dict[str, Any]] = []
    for table, name, unit, model in networks(args.quick, args.preset):
        told = {"table": table, "network": name, "attention": unit}
        rows.append(told | {"size": "{}x{}".format(*args.size)} | cost(model, args))
        write(args.out, "costs", about, rows)
    show("Costs of one image, stage II", rows)
    return 0


if __name__ == "__main__":
    command(main)
