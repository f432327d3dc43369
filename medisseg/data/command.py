"""``medisseg data``: say what is in a data folder, or write it anew with masks as files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from medisseg.data.options import UNMASKED
from medisseg.errors import UserError
from medisseg.text import plain

EXAMPLE = "medisseg data polyps --sheet polyps.jpg"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``medisseg data``."""
    parser.add_argument("folder", type=Path, help="data folder, of images and masks or annotations")
    parser.add_argument("--split", default="all", help="only this split (default: all images)")
    parser.add_argument("--classes", type=int, default=1, help="1, or classes with the background")
    parser.add_argument(
        "--labels", choices=("auto", "classes", "inverted"), default="auto",
        help="keep class indices, or swap foreground and background",
    )  # fmt: skip
    parser.add_argument(
        "--unmasked", choices=UNMASKED, default="negative",
        help="images without a mask (default: negative, there is nothing on them)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--sheet", type=Path, help="write a picture of masks on images, .jpg or .png"
    )
    parser.add_argument("--to", choices=("masks",), help="write a folder with masks as PNG files")
    parser.add_argument("--out", type=Path, help="the folder of --to (default: FOLDER-masks)")


def run(args: argparse.Namespace) -> int:
    """Survey the folder, and write what is asked for."""
    from PIL import Image

    from medisseg.data.convert import write_masks
    from medisseg.data.folder import SegmentationFolder
    from medisseg.data.survey import contact_sheet, take_survey
    from medisseg.evaluation.predict import save
    from medisseg.progress import progress

    if args.sheet and args.sheet.suffix not in (".jpg", ".png"):
        raise UserError(f"--sheet is {args.sheet}; expected a name that ends in .jpg or .png")
    folder = SegmentationFolder(
        args.folder, args.split, classes=args.classes, labels=args.labels, unmasked=args.unmasked
    )
    if args.to:
        out = args.out or args.folder.resolve().with_name(f"{args.folder.resolve().name}-masks")
        if out.exists():
            raise UserError(f"{out} is there already; choose another --out")
        with progress("writing masks", len(folder)) as advance:
            number = write_masks(folder, out, advance)
        print(f"{number} images and masks written into {out}")
        return 0
    with progress("looking", len(folder)) as advance:
        survey = take_survey(folder, advance)
    lines = "\n".join(map(plain, survey.lines()))
    print(json.dumps(survey.to_dict(), indent=2) if args.json else lines)
    if not survey.looks:
        first = next(iter(survey.bad.values()), "it holds no images")
        raise UserError(f"nothing of {args.folder} can be used: {first}")
    if args.sheet:
        save(Image.fromarray(contact_sheet(folder, survey)), args.sheet)
    return 0
