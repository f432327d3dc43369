"""Collect run summaries and write ``docs/measurements/results.md``, beside the paper's numbers.

    python -m benchmarks.results                      write docs/measurements/results.md
    python -m benchmarks.results --check              exit 1 if that would change it
    python -m benchmarks.results add RUN EVALUATION --name edge-kvasir-0 \\
        --table Kvasir-SEG --label "Med-DisSeg, edge" --protocol held-out

A summary is a folder of small files, ``benchmarks/results/runs/NAME/``:

    config.yaml     the run's whole configuration      curves.csv      loss and validation by epoch
    metrics.json    averages, as ``medisseg evaluate`` writes them
    per_image.csv   scores of every image              evaluation.json what was measured, and how
    run.json        {"table", "label", "protocol", "paper", "against", "note"}: where it is shown
    explain.json    measures of collapse, if ``medisseg explain`` was run

Summaries of one table, label and protocol are seeds of one experiment: they share a row.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results_page import page
from benchmarks.summaries import PROTOCOLS, ROOT, RUNS, add, read_runs
from medisseg.errors import command
from medisseg.files import replacing

PAGE = ROOT / "docs" / "measurements" / "results.md"


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check the page, or add a summary."""
    args = parser().parse_args(argv)
    if args.action == "add":
        keys = ("table", "label", "protocol", "paper", "against", "looks", "note")
        about = {key: getattr(args, key) for key in keys}
        print(add(args.run, args.evaluation, args.name, about))
        return 0
    text = page(read_runs(RUNS))
    if args.check:
        same = PAGE.is_file() and PAGE.read_text() == text
        if not same:
            print(f"{PAGE.relative_to(ROOT)} is out of date; run: python -m benchmarks.results")
        return 0 if same else 1
    with replacing(PAGE) as temporary:
        temporary.write_text(text)
    print(PAGE.relative_to(ROOT))
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    top = argparse.ArgumentParser(
        prog="python -m benchmarks.results",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--check", action="store_true", help="only say whether the page would change")
    actions = top.add_subparsers(dest="action")
    adding = actions.add_parser("add", help="make a summary of a run and its evaluation")
    adding.add_argument("run", type=Path, help="run folder of medisseg train")
    adding.add_argument("evaluation", type=Path, help="--out folder of medisseg evaluate")
    adding.add_argument("--name", required=True, help="the summary's folder name")
    adding.add_argument("--table", required=True, help="heading: a data set or a study")
    adding.add_argument("--label", required=True, help="row: the network or variant, without seed")
    adding.add_argument("--protocol", required=True, choices=PROTOCOLS)
    adding.add_argument("--paper", help="the paper's row beside it (default: the label)")
    adding.add_argument("--against", help="label it is tested against, image by image")
    adding.add_argument("--looks", type=int, help="how often the reported images were measured")
    adding.add_argument("--note", help="a sentence below the table")
    return top


if __name__ == "__main__":
    command(main)
