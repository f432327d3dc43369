"""The GPU's runs of docs/measurements/results.md, side by side on one GPU, within a budget.

    python -m benchmarks.training DATA --out FOLDER [--minutes 20] [--device cuda] [--only edge]

DATA holds kvasir-seg/ (and glas/, isic2018-256/ where present). Every run is a process of its
own, trained, evaluated and added to the summaries; called again, what is finished stays and the
rest goes on. A small network leaves a GPU idle between its launches, so a few run at a time; not
many, for processes take turns on a GPU: of fourteen on an H200 all crawled.

Two protocols come from one run: its best epoch is the paper's (the reported images choose it), its
last one is chosen by no image at all. The study's runs have equal, fixed epochs; the others'
schedules fit what is left of the time when they start.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import machine, parser
from benchmarks.summaries import RUNS, add
from medisseg.errors import UserError, command
from medisseg.training.ablations import ABLATIONS

STUDY = "Does the dispersive loss matter? (edge, 160 x 160, 12 epochs, Kvasir-SEG)"
KEYS = ("none", "published", "image", "pixel", "unit-image", "unit-pixel")
FORMS = dict(zip(KEYS, ABLATIONS["dispersive"], strict=True))
SHORT = (
    "input.size=[160,160]", "stage1.epochs=3", "stage2.epochs=9", "stage1.ema=0.98",
    "stage2.ema=0.98", "stage2.validate_every=2",
)  # fmt: skip
TRIAL = ("preset=edge", "encoder_weights=null", "input.size=[64,64]", "epochs=1", "batch=4")
ISIC = ("split.train=isic2016_train", "split.validation=isic2016_test")
PAPER_AND_FIXED = (("best", "paper"), ("last", "fixed"))
EVALUATION_SECONDS = 60.0  # of the budget, for what follows a training
REDUCED = "a ResNet-50 from pruned 8-bit ImageNet weights"


@dataclass(frozen=True)
class Job:
    """One run: how it is trained, and where its epochs are reported.

    Attributes:
        name: Of its folder and its summaries.
        data: Folder below DATA.
        config: Of ``medisseg train``, with ``settings``.
        table: Heading in docs/measurements/results.md, ``label`` its row there.
        reported: List of names that is reported on.
        epochs: Pairs of checkpoint ("best", "last") and protocol.
        against: Row it is tested against; such runs are measured for collapse too.
        encoder: Whether the encoder starts from ``--encoder``; else from packaged weights.
        share: Of the time that is left at its start, to which its schedule is fitted; 0: none, its
            epochs are fixed.
        note: A sentence for the table.
    """

    name: str
    data: str
    config: str
    settings: tuple[str, ...]
    table: str
    label: str = "Med-DisSeg, short recipe"
    reported: str = "val"
    epochs: tuple[tuple[str, str], ...] = PAPER_AND_FIXED
    against: str | None = None
    encoder: bool = True
    share: float = 1.0
    note: str = ""


def jobs(seeds: Sequence[int]) -> list[Job]:
    """Return every run, the most wanted first."""
    held_out: dict[str, Any] = {"epochs": (("best", "held-out"),), "encoder": False}
    found = []
    for seed in seeds:
        own = (f"seed={seed}",)
        edge = Job(f"edge-320-{seed}", "kvasir-seg", "edge-320", own, "Kvasir-SEG",
                   "Med-DisSeg, edge, 320 x 320", **held_out)  # fmt: skip
        found += [Job(f"full-kvasir-{seed}", "kvasir-seg", "short", own, "Kvasir-SEG"), edge]
    for seed in (0, 1, 2):
        for form, row in FORMS.items():
            loss = (f"loss.{key}={json.dumps(value)}" for key, value in row.changes["loss"].items())
            own = (f"seed={seed}", *loss, *SHORT)
            found.append(
                Job(f"dispersive-{form}-{seed}", "kvasir-seg", "edge-gpu", own, STUDY, row.label,
                    against="none", share=0, **held_out)
            )  # fmt: skip
    for seed in seeds:
        own = (f"seed={seed}",)
        found += [
            Job(f"full-glas-{seed}", "glas", "short", (*own, "split.validation=test"), "GlaS",
                reported="test", share=0.5),
            Job(f"full-isic2016-{seed}", "isic2018-256", "short", (*own, *ISIC), "ISIC-2016",
                reported="isic2016_test",
                note="ISIC-2016: the images of its lists that ISIC-2018 has (nine in ten), with "
                "ISIC-2018's masks."),
        ]  # fmt: skip
    return found


class Runner:
    """Trains, evaluates and adds jobs until the time is over; each step's words go to a log."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.end = time.monotonic() + 60 * options.minutes
        self.device = machine(options.device)["device"]
        self.logs = options.out / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)

    def run(self, job: Job) -> bool:
        """Do all of a job; return whether it is finished."""
        start = time.monotonic()
        for words in self.steps(job):
            limit = self.end - time.monotonic()
            if limit < 1 or not self._call(job, words, limit):
                log = self.logs / f"{job.name}.log"
                print(f"{job.name}: not finished, see {log}", flush=True)
                return False
        for epoch, protocol in job.epochs:
            self._add(job, epoch, protocol)
        print(f"{job.name}: done in {time.monotonic() - start:.0f} s", flush=True)
        return True

    def steps(self, job: Job) -> list[list[str]]:
        """Return the commands of a job."""
        options, folder = self.options, self.options.runs / job.name
        data = f"data={options.data / job.data}"
        train = ["train", job.config, *job.settings, data, f"out={folder}", "hardware.threads=1"]
        train += [f"hardware.device={options.device}", "hardware.progress=false"]
        train += [f"hardware.precision={'bf16' if options.device == 'cuda' else 'fp32'}"]
        if job.encoder and options.encoder:
            train.append(f"encoder_weights={options.encoder}")
        if job.share:
            train.append(f"budget_minutes={self.budget(folder, job.share)}")
        if options.device == "cuda":
            train.append("hardware.cuda_graph=true")
        steps = [train + (list(TRIAL) if options.quick else [])]
        measured = ["--data", str(options.data / job.data), "--split", job.reported]
        measured += ["--device", options.device]
        for epoch, _ in job.epochs:
            checkpoint, out = str(folder / f"{epoch}.safetensors"), str(folder / epoch)
            steps.append(["evaluate", checkpoint, *measured, "--cases", "4", "--out", out])
            if job.against:
                steps.append(["explain", checkpoint, *measured, "--images", "1", "--out", out])
        return steps

    def budget(self, folder: Path, share: float) -> float:
        """Return the minutes of a training: of what is left, or what a resumed run began with."""
        if (folder / "config.yaml").is_file():
            return yaml.safe_load((folder / "config.yaml").read_text())["budget_minutes"]
        left = self.end - time.monotonic() - EVALUATION_SECONDS
        return round(share * max(left, 10.0) / 60, 2)

    def _call(self, job: Job, words: list[str], seconds: float) -> bool:
        """Run a command of medisseg; interrupt it, gently at first, when the time is over."""
        with open(self.logs / f"{job.name}.log", "a", encoding="utf-8") as log:
            print("medisseg", *words, file=log, flush=True)
            whole = [sys.executable, "-m", "medisseg", *words]
            with subprocess.Popen(whole, stdout=log, stderr=subprocess.STDOUT) as process:
                try:
                    return process.wait(seconds) == 0
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGINT)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(20)
                    process.kill()
                    return False

    def _add(self, job: Job, epoch: str, protocol: str) -> None:
        folder = self.options.runs / job.name
        about = {
            "table": job.table,
            "label": job.label,
            "protocol": protocol,
            "paper": None if job.against else "Med-DisSeg",
            "against": job.against,
            "looks": looks(job, folder),
            "note": f"{self._told(job, folder)} {job.note}".strip(),
        }
        name = job.name if len(job.epochs) == 1 else f"{job.name}-{protocol}"
        add(folder, folder / epoch, name, about, self.options.summaries)

    def _told(self, job: Job, folder: Path) -> str:
        """Say how a run was trained."""
        settings = yaml.safe_load((folder / "config.yaml").read_text())
        weights = Path(settings["encoder_weights"] or "no").name
        start = REDUCED if weights.endswith(".npz") else f"{weights} weights"
        precision = settings["hardware"]["precision"]
        how = f"on one {self.device} that several runs shared, {precision}, encoder from {start}."
        if not job.share:
            return f"Equal, fixed epochs {how}"
        return f"{job.label}: at most {settings['budget_minutes']} minutes {how}"


def looks(job: Job, folder: Path) -> int:
    """Return how often a run measured the reported images: to choose epochs, and for the report."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    if config["split"]["validation"] != job.reported:
        return len(job.epochs)
    curves = [path.read_text() for path in folder.glob("stage[12]/curves.csv")]
    rows = [row for text in curves for row in csv.DictReader(text.splitlines())]
    return len(job.epochs) + sum(bool(row.get("val_dice")) for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what DATA has data for; 1 if something is not finished."""
    made = parser("training", __doc__)
    made.add_argument("data", type=Path, help="folder that holds the data sets' folders")
    made.add_argument("--minutes", type=float, default=20.0, help="for all together (default: 20)")
    made.add_argument("--runs", type=Path, default=Path("runs/gpu"), help="the runs' folders")
    made.add_argument("--encoder", type=Path, help="weights file of the ResNet-50 encoders")
    made.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the networks")
    made.add_argument("--only", nargs="+", default=[""], help="jobs whose names start so")
    made.add_argument("--parallel", type=int, default=3, help="runs at a time (default: 3)")
    made.add_argument(
        "--summaries", type=Path, default=RUNS, help="default: benchmarks/results/runs"
    )
    options = made.parse_args(argv)
    if options.quick:
        options.summaries = options.out / "runs"
    chosen = [
        job
        for job in jobs(options.seeds)
        if job.name.startswith(tuple(options.only)) and (options.data / job.data).is_dir()
    ]
    if not chosen:
        raise UserError(f"{options.data} has no data for any run; expected kvasir-seg/ in it")
    options.summaries.mkdir(parents=True, exist_ok=True)
    runner = Runner(options)
    with ThreadPoolExecutor(options.parallel) as pool:
        return 0 if all(list(pool.map(runner.run, chosen))) else 1


if __name__ == "__main__":
    command(main)
