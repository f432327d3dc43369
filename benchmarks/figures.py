"""Draw the paper's figures from study folders, as ``medisseg train --study`` leaves them.

    python -m benchmarks.figures bars runs/study-variants --out fig3.png               Fig. 3
    python -m benchmarks.figures bars kvasir/study-dispersive glas/study-dispersive \\
        --out fig4a.png                                                                Fig. 4a
    python -m benchmarks.figures curves runs/study-placement --out fig4c.png           Fig. 4c
    python -m benchmarks.figures bars runs/study-attention --out fig5a.png             Fig. 5a
    python -m benchmarks.figures curves runs/study-attention --out fig5c.png           Fig. 5c

Bars: mIoU and mDSC of every row, the mean over its seeds with their standard deviation, the paper's
figure as a line where it gives one; several folders are groups side by side. Curves: validation
mIoU and mDSC by epoch, the mean over the seeds within the range that these span. A study that is
not finished is drawn as far as it is.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medisseg.colors import CURVES, css
from medisseg.errors import UserError, command
from medisseg.files import replacing
from medisseg.training.ablations import ABLATIONS, slug

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = {"mIoU": ("miou", "val_iou"), "mDSC": ("mdice", "val_dice")}
COLORS = [css(color) for color in CURVES]
Values = npt.NDArray[np.float64]


def read_table(folder: Path) -> dict[str, Any]:
    """Return a study's ``table.json``.

    Raises:
        UserError: No study folder, or one without a finished run.
    """
    try:
        table: dict[str, Any] = json.loads((folder / "table.json").read_text())
        if table["study"] not in ABLATIONS or not table["rows"]:
            raise ValueError("no study of ours")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} is no study with a finished run ({error}); expected the folder study-NAME "
            "that medisseg train --study NAME writes"
        ) from error
    return table


def bars(folders: Sequence[Path]) -> Figure:
    """Return bars of the studies in ``folders``, all of one kind, a group a folder."""
    from matplotlib.figure import Figure

    tables = [read_table(folder) for folder in folders]
    if len({table["study"] for table in tables}) > 1:
        raise UserError(f"{', '.join(t['study'] for t in tables)}: expected folders of one study")
    labels = list(dict.fromkeys(row["row"] for table in tables for row in table["rows"]))
    width = 0.8 / len(labels)
    figure = Figure(figsize=(3 + 0.55 * len(labels) * len(tables), 6), layout="constrained")
    for axes, (title, (key, _)) in zip(figure.subplots(2, 1), METRICS.items(), strict=True):
        shown: list[float] = []
        for place, table in enumerate(tables):
            for row in table["rows"]:
                index = labels.index(row["row"])
                x = place + (index - (len(labels) - 1) / 2) * width
                axes.bar(x, row[key], 0.9 * width, yerr=row[f"{key}_std"] or 0, capsize=3,
                         color=COLORS[index % len(COLORS)],
                         label=row["row"] if row["row"] not in _named(axes) else None)  # fmt: skip
                shown.append(row[key])
                if (paper := row[f"{key}_paper"]) is not None:
                    axes.hlines(paper, x - width / 2, x + width / 2, colors="black")
                    shown.append(paper)
        low, high = min(shown), max(shown)
        axes.set_ylim(max(0, low - 0.3 * (high - low) - 1), high + 0.2 * (high - low) + 1)
        axes.set_xticks(range(len(tables)), [table["title"] for table in tables], fontsize=8)
        axes.set_ylabel(f"{title}, percent")
        axes.spines[["top", "right"]].set_visible(False)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 4))
    figure.suptitle(f"{tables[0]['study']}; bars: ours, black lines: the paper's", fontsize=10)
    return figure


def _named(axes: Any) -> list[str]:
    return list(axes.get_legend_handles_labels()[1])


def read_curves(folder: Path, row: str, stage: int) -> list[dict[str, Values]]:
    """Return epochs and validation metrics of every seed's run of a row, where validated."""
    runs = []
    for path in sorted(folder.glob(f"{slug(row)}/seed*/stage{stage}/curves.csv")):
        with open(path, newline="") as file:
            lines = [line for line in csv.DictReader(file) if line.get("val_dice")]
        if lines:
            keys = ("epoch", *(key for _, key in METRICS.values()))
            runs.append({key: np.array([float(line[key]) for line in lines]) for key in keys})
    return runs


def curves(folder: Path, stage: int = 2) -> Figure:
    """Return validation metrics by epoch of every row of a study, one over the other."""
    from matplotlib.figure import Figure

    table = read_table(folder)
    rows = {row.label: read_curves(folder, row.label, stage) for row in ABLATIONS[table["study"]]}
    rows = {label: runs for label, runs in rows.items() if runs}
    if not rows:
        raise UserError(f"{folder} has no curves of stage {stage}; expected ROW/seedN/stage{stage}")
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (title, (_, key)) in zip(figure.subplots(1, 2), METRICS.items(), strict=True):
        for index, (label, runs) in enumerate(rows.items()):
            epochs = runs[0]["epoch"]
            for run in runs[1:]:
                epochs = np.intersect1d(epochs, run["epoch"])
            values = np.stack([100 * run[key][np.isin(run["epoch"], epochs)] for run in runs])
            color = COLORS[index % len(COLORS)]
            axes.plot(epochs, values.mean(0), color=color, label=f"{label} ({len(runs)})")
            axes.fill_between(epochs, values.min(0), values.max(0), color=color, alpha=0.15, lw=0)
        axes.set(xlabel=f"epoch of stage {stage}", ylabel=f"{title}, percent")
        axes.spines[["top", "right"]].set_visible(False)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right", fontsize=8, title="row (seeds)")
    figure.suptitle(f"{table['study']}: {table['title']}", fontsize=10)
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Draw one figure."""
    top = argparse.ArgumentParser(
        prog="python -m benchmarks.figures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("kind", choices=("bars", "curves"))
    top.add_argument("folders", type=Path, nargs="+", metavar="STUDY", help="study-NAME")
    top.add_argument("--stage", type=int, choices=(1, 2), default=2, help="of curves (default: 2)")
    top.add_argument("--out", type=Path, required=True, help="a name that ends in .png or .svg")
    args = top.parse_args(argv)
    form = args.out.suffix.removeprefix(".")
    if form not in ("png", "svg"):
        raise UserError(f"--out is {args.out}; expected a name that ends in .png or .svg")
    if args.kind == "curves" and len(args.folders) > 1:
        raise UserError(f"curves are of one study; got {len(args.folders)} folders")
    figure = bars(args.folders) if args.kind == "bars" else curves(args.folders[0], args.stage)
    with replacing(args.out) as temporary:
        figure.savefig(temporary, dpi=130, format=form)
    print(args.out)
    return 0


if __name__ == "__main__":
    command(main)
