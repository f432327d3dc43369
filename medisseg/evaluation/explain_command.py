"""``medisseg explain``: pictures of what the features look at, and how they are spread."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from medisseg.errors import UserError
from medisseg.losses import PLACEMENTS

EXAMPLE = (
    "medisseg explain with.safetensors --compare without.safetensors --data polyps --out runs/why"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``medisseg explain``."""
    parser.add_argument("checkpoint", help="checkpoint (file or name)")
    parser.add_argument("--compare", metavar="CHECKPOINT", help="a second one, e.g. undispersed")
    parser.add_argument("--data", required=True, help="data folder with images and masks")
    parser.add_argument("--split", default="val", help="list of names, or all (default: val)")
    parser.add_argument("--out", type=Path, required=True, help="folder for pictures and numbers")
    parser.add_argument("--images", type=int, default=12, help="images with maps (default: 12)")
    parser.add_argument(
        "--placement", default="early", help="feature: early (default), middle, late"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the positions that are drawn")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def run(args: argparse.Namespace) -> int:
    """Write maps/NAME.jpg, embeddings.png, explain.json and index.html."""
    from medisseg.data.folder import SegmentationFolder
    from medisseg.device import pick_device
    from medisseg.evaluation import explain_page
    from medisseg.evaluation.explain import open_views
    from medisseg.files import replacing
    from medisseg.progress import progress

    if args.placement not in PLACEMENTS[:3]:
        raise UserError(f"--placement is {args.placement!r}; expected {', '.join(PLACEMENTS[:3])}")
    device = pick_device(args.device)
    names = [args.checkpoint, *([args.compare] if args.compare else [])]
    views = open_views(names, device)
    samples = SegmentationFolder(args.data, args.split, classes=views[0].info.classes)
    if len(samples) < 3:
        raise UserError(f"split {args.split!r} has {len(samples)} images; expected at least 3")
    found = []
    for view in views:
        with progress(f"features of {view.name}", len(samples)) as advance:
            found.append(view.embeddings(samples, args.placement, 16, args.seed, advance))
    chosen = explain_page.spread(len(samples), args.images)
    with progress("maps", len(chosen)) as advance:
        pictures = explain_page.write_maps(
            views, [samples[i] for i in chosen], args.placement, args.out / "maps", advance
        )
    measures = explain_page.measures(views, found)
    result: dict[str, object] = {
        "data": samples.root.resolve().name,
        "split": args.split,
        "images": len(samples),
        "placement": args.placement,
        "seed": args.seed,
        "models": measures,
    }
    with replacing(args.out / "explain.json") as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n")
    shares = explain_page.true_shares(samples)
    figure = explain_page.embedding_figure(views, found, shares)
    with replacing(args.out / "embeddings.png") as temporary:
        figure.savefig(temporary, format="png", dpi=160, bbox_inches="tight", facecolor="white")
    explain_page.write_page(result, pictures, figure, args.out / "index.html")
    explain_page.print_table(result)
    print(f"pictures: {args.out / 'index.html'}, numbers: {args.out / 'explain.json'}")
    return 0
