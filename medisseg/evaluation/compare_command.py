"""``medisseg compare A B ...``: several systems on the same images, paired tests, pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

import medisseg
from medisseg.errors import UserError
from medisseg.evaluation.names import labels

EXAMPLE = "medisseg compare edge-polyp runs/unet/best.safetensors sam3-masks --data polyps --out c"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``medisseg compare``."""
    parser.add_argument(
        "systems",
        nargs="+",
        metavar="SYSTEM",
        help="checkpoint (file or name), bundle, or a folder of another system's masks",
    )
    parser.add_argument("--data", required=True, help="data folder with images and masks")
    parser.add_argument("--split", default="val", help="list of names, or all (default: val)")
    parser.add_argument("--out", type=Path, required=True, help="folder for table and pictures")
    parser.add_argument("--cases", type=int, default=24, help="pictures on the page (default: 24)")
    parser.add_argument("--batch", type=int, default=8, help="images per run (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap intervals")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def run(args: argparse.Namespace) -> int:
    """Evaluate every system, print the table, write results and page."""
    from rich.console import Console
    from rich.table import Table

    from medisseg.checkpoint import is_bundle
    from medisseg.data.folder import SegmentationFolder
    from medisseg.data.splits import group_table
    from medisseg.evaluation import compare
    from medisseg.evaluation.evaluate import evaluate
    from medisseg.evaluation.stored import StoredMasks
    from medisseg.predictor import Predictor
    from medisseg.progress import progress

    for option in ("batch", "cases"):
        if getattr(args, option) < 1:
            raise UserError(f"--{option} is {getattr(args, option)}; expected 1 or more")
    if len(args.systems) < 2:
        raise UserError("got one system; expected at least two to compare")
    if len(set(args.systems)) < len(args.systems):
        raise UserError("a system is named twice; name each once")
    stored = [Path(name).is_dir() and not is_bundle(name) for name in args.systems]
    predictors = [
        None if masks else Predictor(name, args.device)
        for name, masks in zip(args.systems, stored, strict=True)
    ]
    own = [predictor for predictor in predictors if predictor is not None]
    classes = {predictor.classes for predictor in own} or {1}
    if len(classes) > 1:
        raise UserError(f"the systems have {sorted(classes)} classes; expected the same number")
    count = classes.pop()
    sizes = {predictor.convention.size for predictor in own} or {(256, 256)}
    size, native = min(sizes), len(sizes) > 1
    resolution = "the images' own size" if native else f"{size[0]} x {size[1]}"
    samples = SegmentationFolder(args.data, args.split, classes=count)
    if any(samples.files[name].slice for name in samples.names):
        raise UserError(
            f"{args.data} holds slices of volumes, which are scored by case: medisseg evaluate "
            "SYSTEM (or --predictions DIR) writes per_volume.csv for each system"
        )
    groups = group_table(samples.root, None, samples.names)
    systems = []
    for name, label, predictor in zip(args.systems, labels(args.systems), predictors, strict=True):
        if predictor is None:
            masks = StoredMasks(name, count, size)
            masks.check(samples.names)
            with progress(label, len(samples)) as advance:
                result = masks.evaluate(samples, groups, args.seed, advance)
            systems.append(compare.System(label, result, masks.predict, native))
            continue
        with progress(label, len(samples)) as advance:
            result = evaluate(predictor, samples, groups, args.batch, args.seed, advance)
        systems.append(compare.System(label, result, compare.answering(predictor), native))
    headers, cells = compare.shown(compare.table(systems))
    shown = Table(title=f"{len(samples)} images of {samples.root.resolve().name}, {args.split}")
    shown.caption = compare.protocol(resolution, systems[0].evaluation.groups())
    for header in headers:
        shown.add_column(header)
    for line in cells:
        shown.add_row(*line)
    Console().print(shown)
    about = {
        "data": samples.root.resolve().name,
        "split": args.split,
        "images": len(samples),
        "resolution": resolution,
        "groups": len(set(systems[0].evaluation.groups() or ())) or None,
        "seed": args.seed,
        "version": medisseg.__version__,
    }
    compare.write(systems, samples, about, args.cases, args.out)
    print(f"table: {args.out / 'compare.json'}, page: {args.out / 'index.html'}")
    return 0
