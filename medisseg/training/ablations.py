"""The paper's studies: one setting changed at a time, over seeds, into one table.

Every (row, seed) is a run of its own, so that a study stopped anywhere goes on where it was. The
table is written again after every run: CSV, Markdown and JSON, in percent, with mean, sample
standard deviation, the paper's figure, and a paired test per image against the first row.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from medisseg.config import TrainConfig, from_dict
from medisseg.data import augment
from medisseg.data.folder import SegmentationFolder, load
from medisseg.errors import UserError
from medisseg.evaluation.metrics import paired_test
from medisseg.files import replacing
from medisseg.losses import PLACEMENTS
from medisseg.losses.mask import without_void
from medisseg.model.loading import load_checkpoint
from medisseg.schema import merge
from medisseg.training.batches import Arrays, read_data
from medisseg.training.modules import dice_and_iou, overlaps
from medisseg.training.recorder import write_json
from medisseg.training.run import first_process, printer, train

Changes = Mapping[str, object]
Scores = dict[str, list[float]]  # "iou" and "dice" of every image


@dataclass(frozen=True)
class Row:
    """One line of a study: what is changed, and the paper's (mIoU, mDSC) on Kvasir-SEG."""

    label: str
    changes: Changes = field(default_factory=dict)
    paper: tuple[float | None, float | None] = (None, None)


def _network(elat: bool, cbat: bool, weights: tuple[float, float]) -> dict[str, object]:
    attention = "cbat" if cbat else "none"
    return {
        "options": {"elat": elat, "attention": attention},
        "loss": {"dispersive": list(weights)},
    }


def _loss(**changes: object) -> dict[str, object]:
    """The dispersive loss on, as in the paper, whatever the configuration says, and changed."""
    return {"loss": {"dispersive": [0.2, 0.6], **changes}}


def _variant(name: str) -> dict[str, object]:
    """A form of the loss at lambda = tau = 0.5, where the paper compares them (Fig. 3)."""
    return _loss(variant=name, dispersive=[0.5, 0.5], tau=0.5)


def _attention(name: str) -> Row:
    return Row(name, {"options": {"attention": name}})


# What Med-DisSeg adds to ConDSeg taken away again, on whatever encoder the configuration names.
CONDSEG_LIKE = {
    "options": {"activation": "relu", "elat": False, "attention": "none"},
    "loss": {"dispersive": [0, 0]},
}
# MONAI's U-Net in one stage; a quarter of the paper's width trains in the time that `edge` takes.
UNET = {
    "preset": "unet",
    "options": {"width": 16},
    "encoder_weights": None,
    "stages": [2],
}
SWEEP = (0.2, 0.4, 0.6, 0.8, 1.0)
ABLATIONS: dict[str, tuple[Row, ...]] = {
    "ablation": (
        Row("baseline", _network(False, False, (0, 0)), (84.3, 89.7)),
        Row("+ ELAT", _network(True, False, (0, 0)), (85.0, 90.8)),
        Row("+ CBAT", _network(False, True, (0, 0)), (84.6, 90.2)),
        Row("+ ELAT + CBAT", _network(True, True, (0, 0)), (85.2, 91.1)),
        Row("+ dispersive in stage 1", _network(True, True, (0.2, 0)), (85.4, 91.3)),
        Row("+ dispersive in stage 2", _network(True, True, (0, 0.6)), (85.6, 91.4)),
        Row("+ dispersive in both", _network(True, True, (0.2, 0.6)), (85.9, 91.6)),
    ),
    "variants": (
        Row("none", _loss(dispersive=[0, 0])),
        Row("InfoNCE-L2", _variant("infonce_l2"), (85.6, None)),
        Row("InfoNCE-cosine", _variant("infonce_cosine"), (84.7, None)),
        Row("hinge", _variant("hinge"), (85.1, None)),
        Row("covariance", _variant("covariance")),
    ),
    "dispersive": (
        Row("none", _loss(dispersive=[0, 0])),
        Row("published form", _loss(variant="published")),
        Row("per dimension, image", _loss(granularity="image", normalize="none")),
        Row("per dimension, pixel", _loss(granularity="pixel", normalize="none")),
        Row("unit length, image", _loss(granularity="image")),
        Row("unit length, pixel", _loss(granularity="pixel")),
    ),
    "placement": tuple(Row(p, _loss(placement=p)) for p in PLACEMENTS),
    "tau": tuple(Row(f"tau = {value}", _loss(tau=value)) for value in SWEEP),
    "lambda": tuple(
        Row(f"lambda = {pair}", _loss(dispersive=list(pair)))
        for pair in dict.fromkeys([*((x, 0.6) for x in SWEEP), *((0.2, x) for x in SWEEP)])
    ),
    "attention": tuple(
        _attention(name) for name in ("none", "se", "eca", "cbam", "cbat", "emcad", "datransunet")
    ),
    "baselines": (
        Row("Med-DisSeg", _loss()),
        Row("Med-DisSeg without dispersion", _loss(dispersive=[0, 0])),
        Row("ConDSeg-like", CONDSEG_LIKE),
        Row("U-Net, 16 channels", UNET),
    ),
    "activation": (
        Row("TeLU", {"options": {"activation": "telu"}}),
        Row("ReLU", {"options": {"activation": "relu"}}),
    ),
}


def run_ablation(config: TrainConfig, study: str, seeds: Sequence[int]) -> Path:
    """Train every row of a study with every seed, or what is left of it; return its folder.

    Reported is the first held-out list, or else the images that choose the epoch (the paper's
    protocol); the table says which.

    Args:
        config: What all rows share; the rows' runs go below ``config.out``.
        study: A key of ``ABLATIONS``.
        seeds: Of the runs; the split of the images stays the same.

    Raises:
        UserError: As in training.
    """
    rows = ABLATIONS[study]
    out = Path(config.out) / f"study-{study}"
    settings = [changed(config, row) for row in rows]
    data = read_data(config)
    name, arrays = reported(config, data.validation)
    log = printer()
    for warning in data.warnings:
        log(f"warning: {warning}")
    for seed in seeds:
        for row, base in zip(rows, settings, strict=True):
            folder = out / slug(row.label) / f"seed{seed}"
            log(f"{study}: {row.label}, seed {seed}")
            best = train(from_dict({**base.to_dict(), "seed": seed, "out": str(folder)}), data)
            if first_process():
                if not (folder / "scores.csv").is_file():
                    write_scores(best, arrays, folder / "scores.csv")
                write_table(out, study, f"{config.name}: {name}", seeds)
    log(f"{out}/table.md")
    return out


def changed(config: TrainConfig, row: Row) -> TrainConfig:
    """Return a row's configuration; another network leaves the options of the first behind."""
    base = config.to_dict()
    if "preset" in row.changes:
        base["options"] = {}
    return from_dict(merge(base, dict(row.changes)), row.label)


def reported(config: TrainConfig, validation: Arrays) -> tuple[str, Arrays]:
    """Return what the table reports on, in words and as arrays."""
    if not config.split.held_out:
        return "on the images that chose the epoch", validation
    part = config.split.held_out[0]
    folders = [
        SegmentationFolder(
            source.path,
            part,
            classes=config.classes,
            labels=config.labels,
            seed=config.split.seed,
        )
        for source in config.data
    ]
    images, masks = (
        torch.from_numpy(np.concatenate(parts))
        for parts in zip(*(load(folder, config.input) for folder in folders), strict=True)
    )
    names = [name for folder in folders for name in folder.names]
    return f"on the held-out list {part}", Arrays(images, masks, names)


@torch.no_grad()
def write_scores(checkpoint: Path, arrays: Arrays, path: Path, batch: int = 8) -> None:
    """Write IoU and Dice of every image, or volume, at the network's resolution, as CSV."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_checkpoint(checkpoint, device)
    scored = []
    for start in range(0, len(arrays), batch):
        chosen = range(start, min(start + batch, len(arrays)))
        part = arrays[list(chosen)]
        inputs = augment.normalize(part["image"].to(device).float() / 255, model.info.convention)
        logits, target = without_void(model(inputs).float(), part["mask"].to(device).long())
        scored.append(overlaps(logits, target).cpu())
    pixels, names = torch.cat(scored), arrays.names
    if arrays.case_names and arrays.cases:  # a volume is scored once, from all its slices
        names = tuple(dict.fromkeys(arrays.case_names))
        whole = pixels.new_zeros(len(names), *pixels.shape[1:])
        pixels = whole.index_add_(0, torch.tensor(arrays.cases), pixels)
    dice, iou = dice_and_iou(pixels)
    rows = zip(names, iou.tolist(), dice.tolist(), strict=True)
    lines = ["name,iou,dice", *(f"{name},{one:.6f},{two:.6f}" for name, one, two in rows)]
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def write_table(out: Path, study: str, title: str, seeds: Sequence[int]) -> None:
    """Write the table of the runs that are finished so far.

    Means are over a row's own seeds; its difference from the first row and the test are over the
    seeds that both have finished, so that an interim table compares equals.
    """
    lines: list[dict[str, object]] = []
    first: dict[int, Scores] | None = None
    for row in ABLATIONS[study]:
        runs = {
            seed: read_scores(path)
            for seed in seeds
            if (path := out / slug(row.label) / f"seed{seed}" / "scores.csv").is_file()
        }
        if runs:
            first = first or runs
            lines.append(_line(row, runs, first))
    write_json(out / "table.json", {"study": study, "title": title, "rows": lines})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    with replacing(out / "table.csv") as temporary:
        temporary.write_text(text.getvalue())
    with replacing(out / "table.md") as temporary:
        temporary.write_text(_markdown(study, title, lines))


def read_scores(path: Path) -> Scores:
    """Return IoU and Dice of every image of a run, in percent."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [100 * float(row[name]) for row in rows] for name in ("iou", "dice")}


def _line(row: Row, runs: dict[int, Scores], first: dict[int, Scores]) -> dict[str, object]:
    line: dict[str, object] = {"row": row.label, "seeds": len(runs)}
    for name, paper in (("iou", row.paper[0]), ("dice", row.paper[1])):
        values = [statistics.fmean(scores[name]) for scores in runs.values()]
        line[f"m{name}"] = round(statistics.fmean(values), 2)
        line[f"m{name}_std"] = round(statistics.stdev(values), 2) if len(values) > 1 else None
        line[f"m{name}_paper"] = paper
    common = [seed for seed in runs if seed in first]
    line["common_seeds"] = line["dice_difference"] = line["p_value"] = None
    if runs is not first and common:
        base, ours = (_mean_of_seeds([r[seed]["dice"] for seed in common]) for r in (first, runs))
        test = paired_test(base, ours)
        line["common_seeds"] = len(common)
        line["dice_difference"] = round(test["difference"], 2)
        line["p_value"] = round(test["p_value"], 4)
    return line


def _mean_of_seeds(runs: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean of each image's values over runs."""
    return [statistics.fmean(values) for values in zip(*runs, strict=True)]


def _markdown(study: str, title: str, lines: Sequence[Mapping[str, object]]) -> str:
    def cell(value: object) -> str:
        return "" if value is None else str(value)

    def figure(line: Mapping[str, object], name: str) -> str:
        spread = line[f"m{name}_std"]
        return f"{line[f'm{name}']:.2f}" + ("" if spread is None else f" ± {spread:.2f}")

    head = (
        f"# Study: {study}\n\n{title}. Percent, mean ± standard deviation over seeds; difference "
        "in Dice from the first row over the seeds that both have, with a Wilcoxon test over "
        "images.\n\n"
        "| | seeds | mIoU | paper | mDSC | paper | difference | p |\n"
        "|---|---|---|---|---|---|---|---|\n"
    )
    return head + "".join(
        f"| {line['row']} | {line['seeds']} | {figure(line, 'iou')} | {cell(line['miou_paper'])} "
        f"| {figure(line, 'dice')} | {cell(line['mdice_paper'])} "
        f"| {cell(line['dice_difference'])} | {cell(line['p_value'])} |\n"
        for line in lines
    )


def slug(label: str) -> str:
    """Return the name of the folder of a row's runs."""
    return "-".join("".join(c if c.isalnum() or c in "._" else " " for c in label).split()).lower()


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of "0,1,2", or the first so many of a single count "3".

    Raises:
        UserError: Not numbers.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--seeds is {text!r}; expected a count (3) or a list (0,1,2)") from error
    if min(numbers) < 0 or numbers == [0]:
        raise UserError(f"--seeds is {text!r}; expected a count (3) or a list (0,1,2)")
    return list(range(numbers[0])) if "," not in text else numbers
