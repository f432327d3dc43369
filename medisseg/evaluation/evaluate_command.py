"""``medisseg evaluate``: measure a checkpoint or a bundle on a labelled data folder."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import medisseg
from medisseg.data.options import UNMASKED
from medisseg.errors import UserError
from medisseg.schema import Json

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from medisseg.data.folder import Sample
    from medisseg.evaluation.evaluate import Evaluation
    from medisseg.evaluation.volumes import VolumeScores
    from medisseg.predictor import Prediction, Predictor

EXAMPLE = "medisseg evaluate edge-polyp --data data/kvasir-seg --split val --out runs/val"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``medisseg evaluate``."""
    parser.add_argument("checkpoint", nargs="*", help="checkpoint (file or name) or bundle")
    parser.add_argument(
        "--predictions", metavar="DIR", help="another system's masks instead of a checkpoint"
    )
    parser.add_argument(
        "--classes", type=int, default=1, help="of --predictions, background included (default: 1)"
    )
    parser.add_argument(
        "--size", default="256x256", help="of --predictions: the protocol's HEIGHTxWIDTH"
    )
    parser.add_argument(
        "--ensemble", action="store_true", help="average the probabilities of several checkpoints"
    )
    parser.add_argument(
        "--tta", choices=("none", "flips"), default="none", help="average over views of an image"
    )
    parser.add_argument("--data", required=True, help="data folder with images and masks")
    parser.add_argument("--split", default="val", help="list of names, or all (default: val)")
    parser.add_argument(
        "--unmasked", choices=UNMASKED, default="refuse", help="images without a mask"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for metrics.json, per_image.csv, index.html, worst.png"
    )
    parser.add_argument(
        "--negatives", metavar="DIR", help="images without lesion: false regions are counted there"
    )
    parser.add_argument(
        "--pasted",
        action="store_true",
        help="also put the lesions into the images of --negatives: are these silent by their look?",
    )
    parser.add_argument(
        "--corruptions",
        action="store_true",
        help="also measure under codecs, noise, blur, light and screens (corruptions.md)",
    )
    parser.add_argument(
        "--spacing", metavar="MM", help="slices,rows,columns of volumes whose files say none"
    )
    parser.add_argument(
        "--class-names", default="", help="of --predictions, without background: liver,spleen"
    )
    parser.add_argument("--batch", type=int, default=8, help="images per run (default: 8)")
    parser.add_argument("--threshold", type=float, help="default: the checkpoint's own")
    parser.add_argument(
        "--picture",
        default="full",
        help="part of each image that is segmented: full (default: the papers' protocol), auto "
        "(the endoscopic picture on a processor's screen) or x,y,w,h",
    )
    parser.add_argument("--cases", type=int, default=24, help="cases on the page (default: 24)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap intervals")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", default="fp32", help="fp32 (default), fp16 or bf16")


def run(args: argparse.Namespace) -> int:
    """Evaluate, print a table and, with ``--out``, write the results and the page."""
    from medisseg.data.folder import SegmentationFolder
    from medisseg.data.negatives import Negatives
    from medisseg.data.shares import doubts, foreground_line
    from medisseg.data.splits import group_table
    from medisseg.evaluation.corruptions import corruptions, measure, write_table
    from medisseg.evaluation.evaluate import (
        NEGATIVES,
        OTHERS,
        PASTED,
        PASTED_MUCOSA,
        evaluate,
        write_results,
    )
    from medisseg.evaluation.evaluate_page import write_froc, write_page, write_worst
    from medisseg.evaluation.opening import open_predictor
    from medisseg.evaluation.pasted import Pasted
    from medisseg.evaluation.volumes import find_volumes
    from medisseg.progress import progress
    from medisseg.text import console as terminal
    from medisseg.text import plain

    if args.predictions:
        return run_stored(args)
    if not args.checkpoint:
        raise UserError("nothing to evaluate; give a checkpoint, or --predictions DIR of masks")
    if args.batch < 1:
        raise UserError(f"--batch is {args.batch}; expected 1 or more")
    if args.corruptions and not args.out:
        raise UserError("--corruptions writes a table; give --out FOLDER")
    if args.pasted and not args.negatives:
        raise UserError("--pasted puts lesions into images without; give --negatives DIR of them")
    if len(args.checkpoint) > 1 and not args.ensemble:
        raise UserError(
            f"{len(args.checkpoint)} checkpoints; --ensemble averages them, else evaluate each"
        )
    predictor = open_predictor(
        args.checkpoint, args.device, args.threshold, args.precision, args.tta, args.picture
    )
    samples = SegmentationFolder(
        args.data, args.split, classes=predictor.classes, unmasked=args.unmasked
    )
    volumes = find_volumes(
        samples, predictor.classes, args.spacing, [label.name for label in predictor.labels]
    )
    for note in samples.notes():
        print(plain(note))
    negatives = Negatives(args.negatives) if args.negatives else None
    for checkpoint in args.checkpoint:
        warn_of_training_images(checkpoint, samples.names)
    groups = group_table(samples.root, None, samples.names)
    with progress("evaluating", len(samples)) as advance:
        result = evaluate(predictor, samples, groups, args.batch, args.seed, advance, volumes)
    areas = [row.area for row in result.rows]
    beside: dict[str, Sequence[Sample]] = {}
    if negatives:
        beside[NEGATIVES] = negatives
    if negatives and args.pasted:
        which = [index for index, area in enumerate(areas) if area]
        if not which:
            raise UserError(
                f"no lesion on {len(areas)} images of {samples.root}; nothing to put in"
            )
        beside[PASTED] = Pasted(samples, negatives, which, seed=args.seed)
        beside[PASTED_MUCOSA] = Pasted(samples, negatives, which, mucosa=True, seed=args.seed)
    others = {}
    for key, images in beside.items():
        with progress(OTHERS[key], len(images)) as advance:
            others[key] = evaluate(predictor, images, None, args.batch, args.seed, advance)
    print(foreground_line(areas))
    for doubt in doubts(areas):
        print(f"warning: {doubt}")
    metadata = about(args, predictor)
    console = terminal()
    console.print(_table(metadata, result.summary(), result.groups()))
    if len(result.classes()) > 1:
        console.print(_classes(result, metadata))
    if volumes is not None:
        console.print(_volumes(volumes))
    console.print(_regions(result, others))
    if args.out:
        write_results(result, metadata, args.out, others)

        def answer(sample: Sample) -> Prediction:
            return predictor(sample.image)

        write_page(result, metadata, answer, samples, args.cases, args.out / "index.html", others)
        write_worst(result, answer, samples, args.out / "worst.png")
        write_froc(result, args.out / "froc.png", others)
        print(f"results: {args.out / 'metrics.json'}, page: {args.out / 'index.html'}")
    if args.corruptions:
        pictures = len(corruptions()) * (len(samples) + len(negatives or ()))
        with progress("corruptions", pictures) as advance:
            rows = measure(predictor, samples, negatives or (), advance)
        write_table(rows, args.out)
        print(f"corruptions: {args.out / 'corruptions.md'}")
    return 0


def run_stored(args: argparse.Namespace) -> int:
    """Score the masks that another system left in a folder, as a checkpoint is scored."""
    from medisseg.data.folder import SegmentationFolder
    from medisseg.data.splits import group_table
    from medisseg.evaluation.evaluate import write_results
    from medisseg.evaluation.evaluate_page import write_froc, write_page, write_worst
    from medisseg.evaluation.stored import StoredMasks
    from medisseg.evaluation.volumes import find_volumes
    from medisseg.labels import make_labels
    from medisseg.progress import progress
    from medisseg.text import console as terminal

    names = ("ensemble", "corruptions", "negatives", "pasted")
    used = [f"--{name}" for name in names if getattr(args, name)]
    used += ["--tta"] if args.tta != "none" else []
    if args.checkpoint or used:
        raise UserError(
            f"--predictions scores masks that are there; it does not go with "
            f"{', '.join([*args.checkpoint, *used])}"
        )
    sides = args.size.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() for side in sides) or args.classes < 1:
        raise UserError(
            f"--size is {args.size!r}, --classes {args.classes}; expected such as 352x352 and 1"
        )
    height, width = map(int, sides)
    named = [name.strip() for name in args.class_names.split(",") if name.strip()]
    try:
        chosen = make_labels(args.classes, named)
    except ValueError as error:
        raise UserError(f"--class-names: {error}") from error
    threshold = 0.5 if args.threshold is None else args.threshold
    stored = StoredMasks(args.predictions, args.classes, (height, width), threshold)
    samples = SegmentationFolder(
        args.data, args.split, classes=args.classes, unmasked=args.unmasked
    )
    volumes = find_volumes(samples, args.classes, args.spacing, named)
    stored.check(samples.names)
    groups = group_table(samples.root, None, samples.names)
    with progress("evaluating", len(samples)) as advance:
        result = stored.evaluate(samples, groups, args.seed, advance, volumes)
    metadata = {
        "model": stored.name,
        "architecture": "masks of another system",
        "data": Path(args.data).resolve().name,
        "split": args.split,
        "size": args.size,
        "threshold": stored.threshold,
        "labels": [dataclasses.asdict(label) for label in chosen],
        "seed": args.seed,
        "version": medisseg.__version__,
    }
    console = terminal()
    console.print(_table(metadata, result.summary(), result.groups()))
    if len(result.classes()) > 1:
        console.print(_classes(result, metadata))
    if volumes is not None:
        console.print(_volumes(volumes))
    console.print(_regions(result, {}))
    if args.out:
        write_results(result, metadata, args.out)
        write_page(result, metadata, stored.predict, samples, args.cases, args.out / "index.html")
        write_worst(result, stored.predict, samples, args.out / "worst.png")
        write_froc(result, args.out / "froc.png")
        print(f"results: {args.out / 'metrics.json'}, page: {args.out / 'index.html'}")
    return 0


def warn_of_training_images(checkpoint: str, names: Sequence[str]) -> None:
    """Say how many of the images a checkpoint in its run folder was trained on."""
    for folder in Path(checkpoint).resolve().parents[:2]:
        trained = folder / "splits" / "train.txt"
        if not trained.is_file():
            continue
        if known := set(names) & set(trained.read_text().splitlines()):
            print(
                f"warning: {len(known)} of {len(names)} images are in {trained}: the network was "
                f"trained on them; --split {trained.with_name('validation.txt')} names the others"
            )
        return


def about(args: argparse.Namespace, predictor: Predictor) -> dict[str, object]:
    """Return what was measured and how, for ``evaluation.json`` and the page."""
    from medisseg.evaluation.opening import combined_label

    height, width = predictor.convention.size
    return {
        "model": combined_label(args.checkpoint, args.tta),
        "architecture": predictor.name,
        "data": Path(args.data).resolve().name,
        "split": args.split,
        "size": f"{height}x{width}",
        "threshold": predictor.threshold,
        "labels": [dataclasses.asdict(label) for label in predictor.labels],
        "picture": args.picture,
        "seed": args.seed,
        "convention": predictor.convention.to_dict(),
        "version": medisseg.__version__,
    }


def _table(metadata: Json, summary: Json, groups: list[str] | None) -> Any:
    from rich.table import Table

    from medisseg.evaluation.evaluate_page import table_rows

    model, data, split = (metadata[key] for key in ("model", "data", "split"))
    table = Table(title=f"{model} on {data}, {split}: {summary['images']} images")
    for column in ("per image, then averaged", f"network ({metadata['size']})", "image's own size"):
        table.add_column(column, justify="left" if column.startswith("per") else "right")
    for row in table_rows(summary):
        table.add_row(*row)
    whole = f", drawing whole sequences or patients ({len(set(groups))})" if groups else ""
    table.caption = f"95 % bootstrap intervals in brackets{whole}"
    return table


def _classes(result: Evaluation, metadata: Json) -> RichTable:
    from rich.style import Style
    from rich.table import Table
    from rich.text import Text

    from medisseg.evaluation.evaluate_page import class_rows
    from medisseg.evaluation.report import Key

    headers, rows = class_rows(result, metadata)
    table = Table(title="by class, at the network's size")
    for header in headers:
        table.add_column(header, no_wrap=header == "class")
    for name, images, *scores in rows:
        shown = Text(str(name))
        if isinstance(name, Key):
            color = Style(color="rgb({},{},{})".format(*name.color))
            shown = Text.assemble(("■ ", color), name.text)
        table.add_row(shown, str(images), *(f"{score:.4f}" for score in scores))
    return table


def _volumes(volumes: VolumeScores) -> RichTable:
    from rich.table import Table

    from medisseg.evaluation.evaluate_page import volume_rows

    headers, rows = volume_rows(volumes.summary())
    table = Table(*headers, title="whole volumes, at the slices' own size")
    for row in rows:
        table.add_row(*row)
    if volumes.partial:
        table.caption = f"of {', '.join(volumes.partial[:3])} the split holds some slices only"
    return table


def _regions(result: Evaluation, others: Mapping[str, Evaluation]) -> RichTable:
    from rich.table import Table

    from medisseg.evaluation.evaluate_page import REGIONS, region_rows

    table = Table(title="regions, at the images' own size")
    for column in REGIONS:
        table.add_column(column)
    for row in region_rows(result, others):
        table.add_row(*row)
    return table
