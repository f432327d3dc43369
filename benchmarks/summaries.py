"""Summaries of runs in ``benchmarks/results/runs/``: what they hold, reading and adding them."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from medisseg.errors import UserError
from medisseg.files import replacing

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "benchmarks" / "results" / "runs"
FROM_RUN = ("config.yaml", "curves.csv")
FROM_EVALUATION = ("metrics.json", "per_image.csv", "evaluation.json")
PLACES = ("data", "negatives", "out", "stage_one", "start_from", "encoder_weights")
PROTOCOLS = {
    "paper": "the epoch is the best one on the images that are reported, as in the papers",
    "held-out": "a part of the training images chooses the epoch; the reported images, or a data "
    "set never trained on, choose nothing. How often they were measured stands below each table",
    "fixed": "the last epoch is reported; no image chooses an epoch",
}


@dataclass(frozen=True)
class Run:
    """One summary: its name, where it is shown, its averages, each image's Dice, its settings.

    ``epochs`` and ``validations`` are those of its curve, the last stage's; ``reported`` is the
    list that was evaluated.
    """

    name: str
    about: dict[str, Any]
    metrics: dict[str, Any]
    dice: dict[str, float]
    config: dict[str, Any]
    collapse: dict[str, Any] | None
    epochs: int = 0
    validations: int = 0
    reported: str = ""

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
        with open(path / "curves.csv", newline="") as file:
            curve = list(csv.DictReader(file))
        validated = sum(bool(row.get("val_dice")) for row in curve)
        reported = json.loads((path / "evaluation.json").read_text()).get("split", "")
        _check(about)
        measured = (metrics, dice, config, collapse, len(curve), validated, reported)
        return Run(path.name, about, *measured)
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
    with replacing(runs / name) as temporary:
        temporary.mkdir(parents=True)
        for path in sources:
            shutil.copyfile(path, temporary / path.name)
        _forget_places(temporary / "config.yaml")
        metadata = {key: value for key, value in about.items() if value}
        if (run / "stage1" / "summary.json").is_file():
            done = json.loads((run / "stage1" / "summary.json").read_text())
            metadata.setdefault("stage1_epochs", done["epochs"])
        (temporary / "run.json").write_text(json.dumps(metadata, indent=2) + "\n")
        _read(temporary)
    return runs / name


def _forget_places(path: Path) -> None:
    """Keep of the folders in a configuration only their names: the rest is one machine's.

    Of a checkpoint its folder's name stays too: every run's is called best.safetensors.
    """
    config = yaml.safe_load(path.read_text())
    for key in PLACES:
        value = config.get(key)
        if isinstance(value, list):  # several data folders, each a table
            config[key] = [{**part, "path": Path(part["path"]).name} for part in value]
        elif value:
            kept = 2 if Path(value).suffix == ".safetensors" else 1
            config[key] = "/".join(Path(value).parts[-kept:])
    path.write_text(yaml.safe_dump(config, sort_keys=False))
