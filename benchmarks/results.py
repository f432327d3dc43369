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
import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from medisseg.errors import UserError, command
from medisseg.files import replacing

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "benchmarks" / "results" / "runs"
PAGE = ROOT / "docs" / "measurements" / "results.md"
FROM_RUN = ("config.yaml", "curves.csv")
FROM_EVALUATION = ("metrics.json", "per_image.csv", "evaluation.json")
PLACES = ("data", "out", "stage_one", "start_from", "encoder_weights")
PROTOCOLS = {
    "paper": "the epoch is the best one on the images that are reported, as in the papers",
    "held-out": "a part of the training images chooses the epoch; the reported images, or a data "
    "set never trained on, are measured once",
    "fixed": "the last epoch of a schedule fixed beforehand is reported; no image chooses an epoch",
}


@dataclass(frozen=True)
class Run:
    """One summary: its name, where it is shown, its averages, each image's Dice, its settings."""

    name: str
    about: dict[str, Any]
    metrics: dict[str, Any]
    dice: dict[str, float]
    config: dict[str, Any]
    collapse: dict[str, Any] | None

    @property
    def row(self) -> tuple[str, str, str]:
        """Table, label and protocol: what seeds of one experiment share."""
        return self.about["table"], self.about["label"], self.about["protocol"]


def read_runs(folder: Path) -> list[Run]:
    """Return every summary below a folder, by name.

    Raises:
        UserError: A file is missing or damaged.
    """
    return [_read(path) for path in sorted(folder.glob("*")) if path.is_dir()]


def _read(path: Path) -> Run:
    try:
        about = json.loads((path / "run.json").read_text())
        metrics = json.loads((path / "metrics.json").read_text())
        config = yaml.safe_load((path / "config.yaml").read_text())
        with open(path / "per_image.csv", newline="") as file:
            dice = {row["image"]: float(row["dice"]) for row in csv.DictReader(file)}
        explained = path / "explain.json"
        collapse = json.loads(explained.read_text()) if explained.is_file() else None
        _check(about)
        return Run(path.name, about, metrics, dice, config, collapse)
    except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
        raise UserError(f"{path} is no whole run summary ({error}); add it again") from error


def _check(about: dict[str, Any]) -> None:
    for key in ("table", "label", "protocol"):
        if not about.get(key):
            raise ValueError(f"run.json has no {key}")
    if about["protocol"] not in PROTOCOLS:
        raise ValueError(f"protocol {about['protocol']!r}; expected {' or '.join(PROTOCOLS)}")


def add(run: Path, evaluation: Path, name: str, about: dict[str, Any], runs: Path = RUNS) -> Path:
    """Copy a run's and an evaluation's small files into a summary; return its folder."""
    sources = [run / file for file in FROM_RUN] + [evaluation / file for file in FROM_EVALUATION]
    missing = [str(path) for path in sources if not path.is_file()]
    if missing:
        raise UserError(
            f"{', '.join(missing)} not found; expected a run folder of medisseg train and the "
            "--out folder of medisseg evaluate"
        )
    for extra in (evaluation / "explain.json", run / "explain.json"):
        if extra.is_file():
            sources.append(extra)
            break
    with replacing(runs / name) as beside:
        beside.mkdir(parents=True)
        for path in sources:
            shutil.copyfile(path, beside / path.name)
        _forget_places(beside / "config.yaml")
        told = {key: value for key, value in about.items() if value}
        (beside / "run.json").write_text(json.dumps(told, indent=2) + "\n")
        _read(beside)
    return runs / name


def _forget_places(path: Path) -> None:
    """Keep of the folders in a configuration only their names: the rest is one machine's."""
    config = yaml.safe_load(path.read_text())
    for key in PLACES:
        if config.get(key):
            config[key] = Path(config[key]).name
    path.write_text(yaml.safe_dump(config, sort_keys=False))


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check the page, or add a summary."""
    from benchmarks.results_page import page

    args = parser().parse_args(argv)
    if args.action == "add":
        keys = ("table", "label", "protocol", "paper", "against", "note")
        about = {key: getattr(args, key) for key in keys}
        print(add(args.run, args.evaluation, args.name, about))
        return 0
    text = page(read_runs(RUNS))
    if args.check:
        same = PAGE.is_file() and PAGE.read_text() == text
        if not same:
            print(f"{PAGE.relative_to(ROOT)} is out of date; run: python -m benchmarks.results")
        return 0 if same else 1
    with replacing(PAGE) as beside:
        beside.write_text(text)
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
    adding.add_argument("--note", help="a sentence below the table")
    return top


if __name__ == "__main__":
    command(main)
