"""``medisseg import-checkpoint``: the authors' checkpoint, under our names, as safetensors."""

from __future__ import annotations

import argparse
from pathlib import Path

from medisseg.errors import UserError

EXAMPLE = "medisseg import-checkpoint authors.pth med-disseg.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``medisseg import-checkpoint``."""
    parser.add_argument("source", type=Path, help="the authors' .pth (only tensors are read)")
    parser.add_argument("out", type=Path, help="where to write the .safetensors")
    parser.add_argument(
        "--stage", type=int, choices=(1, 2), help="default: 1 if it has a Stage I head, else 2"
    )


def run(args: argparse.Namespace) -> int:
    """Convert one checkpoint and say what it became."""
    from medisseg.checkpoint import save_checkpoint
    from medisseg.model.authors import guess_stage, import_state
    from medisseg.model.pretrained import read_pickle

    if not args.source.is_file():
        raise UserError(f"{args.source} is no file; give the authors' .pth")
    if args.out.suffix != ".safetensors":
        raise UserError(f"{args.out} should end in .safetensors")
    state = read_pickle(args.source)
    model = import_state(state, args.stage or guess_stage(state), str(args.source))
    info = model.info
    save_checkpoint(args.out, model, info)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{args.out}: {info.architecture} stage {info.stage}, {parameters:,} parameters, "
        f"input {info.convention.color} / 255 without normalisation"
    )
    return 0
