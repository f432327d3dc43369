"""``medisseg phantom OUT``: generate colonoscopy images and video with exact masks."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from medisseg.errors import UserError

EXAMPLE = "medisseg phantom runs/phantom --images 240 --frames 200 --seed 0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--images", type=int, default=0, metavar="N", help="stills (default 0)")
    parser.add_argument(
        "--frames", type=int, default=0, metavar="N", help="frames of the video (default 0: none)"
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same phantom")
    parser.add_argument(
        "--size", default="256x256", metavar="HxW", help="pixels, even (default %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Write the phantom that the arguments describe and say where it lies."""
    from medisseg.phantom import write_phantom

    size = re.fullmatch(r"(\d+)(?:x(\d+))?", args.size.lower())
    if not size:
        raise UserError(f"got --size {args.size}; expected HEIGHTxWIDTH, e.g. --size 256x256")
    height = int(size[1])
    write_phantom(args.out, args.frames, args.images, args.seed, (height, int(size[2] or height)))
    parts = [f"{args.images} images with masks"] * bool(args.images)
    parts += [f"a video of {args.frames} frames with masks"] * bool(args.frames)
    print(f"{args.out}: {' and '.join(parts)}")
    return 0
