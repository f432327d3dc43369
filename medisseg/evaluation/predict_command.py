"""``medisseg predict``: segment images with a checkpoint or a bundle."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from medisseg.errors import UserError
from medisseg.text import safe

EXAMPLE = "medisseg predict edge-polyp photos/ 'more/*.tif' --out runs/masks --overlay"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``medisseg predict``."""
    parser.add_argument("checkpoint", help="checkpoint (file or name) or bundle")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="images, folders or globs")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder: masks/, predictions.csv, and on request:"
    )
    parser.add_argument(
        "--ensemble", action="append", default=[], metavar="CHECKPOINT",
        help="average with this checkpoint, too; may be given again",
    )  # fmt: skip
    parser.add_argument(
        "--tta", choices=("none", "flips"), default="none", help="average over views of an image"
    )
    parser.add_argument("--overlay", action="store_true", help="overlays/NAME.jpg")
    parser.add_argument(
        "--probabilities", action="store_true", help="probabilities/NAME.png, 16 bit, 65535 is 1"
    )
    parser.add_argument("--threshold", type=float, help="default: the checkpoint's own")
    parser.add_argument(
        "--picture",
        default="auto",
        help="part of each image that is segmented: auto (default: the endoscopic picture on a "
        "processor's screen; cropped images stay whole), full or x,y,w,h",
    )
    parser.add_argument("--batch", type=int, default=8, help="images per run (default: 8)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", default="fp32", help="fp32 (default), fp16 or bf16")


def run(args: argparse.Namespace) -> int:
    """Segment every image; return 2 when some could not be read."""
    from medisseg.evaluation.opening import open_predictor
    from medisseg.evaluation.predict import find_jobs, predict, write_list
    from medisseg.progress import progress

    if args.batch < 1:
        raise UserError(f"--batch is {args.batch}; expected 1 or more")
    jobs = find_jobs(args.inputs, args.out)
    checkpoints = [args.checkpoint, *args.ensemble]
    predictor = open_predictor(
        checkpoints, args.device, args.threshold, args.precision, args.tta, args.picture
    )
    with progress("segmenting", len(jobs)) as advance:
        outcomes = predict(
            predictor, jobs, args.out, args.overlay, args.probabilities, args.batch, advance
        )
    write_list(outcomes, args.out, predictor.labels)
    failed = [outcome for outcome in outcomes if outcome.error]
    print(f"{len(outcomes) - len(failed)} of {len(outcomes)} images segmented into {args.out}")
    for outcome in failed:
        print(f"error: {safe(outcome.error)}", file=sys.stderr)
    return 2 if failed else 0
