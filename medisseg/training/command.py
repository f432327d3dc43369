"""``medisseg train CONFIG.yaml [key=value ...]``: train, resume, or run a study."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medisseg.config import TrainConfig

EXAMPLE = "medisseg train edge data=kvasir-seg out=runs/edge stage2.epochs=40"
ABLATIONS = (
    "ablation",
    "variants",
    "placement",
    "tau",
    "lambda",
    "attention",
    "activation",
    "dispersive",
    "baselines",
)
# Options named as in the other commands, and the keys they set.
SHORTHANDS = {
    "data": "data",
    "out": "out",
    "seed": "seed",
    "batch": "batch",
    "device": "hardware.device",
    "precision": "hardware.precision",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("config", help="YAML file, or the name of one of ours, such as edge")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings to change, e.g. stage2.lr=1e-4"
    )
    for name, key in SHORTHANDS.items():
        parser.add_argument(f"--{name}", help=f"the same as {key}=")
    parser.add_argument("--size", help="network input HEIGHTxWIDTH, the same as input.size=[H,W]")
    parser.add_argument("--study", choices=ABLATIONS, help="run a study instead")
    parser.add_argument(
        "--seeds", default="3", help="of a study: how many, or which (0,1,2); default: %(default)s"
    )


def run(args: argparse.Namespace) -> int | None:
    """Train what the arguments say."""
    from medisseg.training.memory import keep_freed_memory

    config = read_config(args)
    keep_freed_memory()
    if args.study:
        from medisseg.training.ablations import parse_seeds, run_ablation

        run_ablation(config, args.study, parse_seeds(args.seeds))
        return 0
    from medisseg.training.run import train

    train(config)
    return 0


def read_config(args: argparse.Namespace) -> TrainConfig:
    """Return the configuration that file, overrides and options make together.

    Raises:
        UserError: A file, key or value that is wrong.
    """
    from medisseg.config import load_config

    overrides = list(args.overrides)
    for name, key in SHORTHANDS.items():
        value = getattr(args, name)
        if value is not None:
            # A path is one string, whatever YAML would read in it.
            text = json.dumps(value) if name in ("data", "out") else value
            overrides.append(f"{key}={text}")
    if args.size:
        overrides.append(f"input.size=[{args.size.lower().replace('x', ',')}]")
    return load_config(args.config, overrides)
