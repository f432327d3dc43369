"""What a stage leaves in its folder: curves, checkpoints, pictures, and the state to resume from.

Written at the end of an epoch, at most every ``store_seconds``, each file whole or not at all, the
resume state last: a run killed at any moment continues from the epoch that was written last.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

import medisseg
from medisseg.checkpoint import Checkpoint, save_checkpoint
from medisseg.files import replacing
from medisseg.schema import Json
from medisseg.training import pictures
from medisseg.training.modules import SegmentationModule

RESUME = "resume.ckpt"


class Recorder(Callback):
    """Keeps the history of a stage, its best weights and what a resumed run starts from.

    Args:
        folder: The stage's folder.
        info: Header of the checkpoints; the validation metrics are filled in.
        log: Prints one line for the user.
        store_seconds: Least time between two writings.
    """

    def __init__(
        self,
        folder: Path,
        info: Checkpoint,
        log: Callable[[str], None],
        store_seconds: float = 0.0,
    ) -> None:
        self.folder, self.info, self.say = folder, info, log  # "log" is Lightning's
        self.store_seconds = store_seconds
        self.history: list[dict[str, float]] = []
        self.best: dict[str, float] = {}
        self._stored = -math.inf
        self._unwritten: dict[str, tuple[dict[str, Tensor], dict[str, float]]] = {}
        self._samples: np.ndarray | None = None
        self._start = time.monotonic()

    def state_dict(self) -> dict[str, object]:
        """Return what Lightning stores with the resume state."""
        return {"history": self.history, "best": self.best}

    def load_state_dict(self, state: Json) -> None:
        """Take up the history of the run that is resumed."""
        self.history, self.best = state["history"], state["best"]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch's clock."""
        self._start = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the epoch; decide whether patience is over; store everything."""
        assert isinstance(pl_module, SegmentationModule)
        pl_module.check_weights()
        row = self._row(trainer, pl_module)
        self.history.append(row)
        improved = "val_dice" in row and row["val_dice"] > self.best.get("val_dice", -1.0)
        if improved:
            self.best = dict(row)
        waited = row["epoch"] - self.best.get("epoch", 0)
        if pl_module.stage.patience and waited >= pl_module.stage.patience:
            trainer.should_stop = True
        if trainer.logger is not None:
            trainer.logger.log_metrics(row, step=int(row["epoch"]))
        if trainer.is_global_zero:
            self._keep(pl_module, improved)
            self._tell(row, pl_module, improved)
        if not self._due(trainer):
            return
        if trainer.is_global_zero:
            self._store()
        with replacing(self.folder / RESUME) if trainer.is_global_zero else _nowhere() as temporary:
            trainer.save_checkpoint(temporary)
        self._stored = time.monotonic()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write the complete epochs that only memory holds."""
        if trainer.is_global_zero and self._unwritten:
            self._store()

    def _due(self, trainer: Trainer) -> bool:
        """Whether every process writes now: the stage ends, or long enough ago."""
        ends = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        due = ends or time.monotonic() - self._stored >= self.store_seconds
        return trainer.strategy.broadcast(due)

    def _row(self, trainer: Trainer, module: SegmentationModule) -> dict[str, float]:
        row: dict[str, float] = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        row["lr"] = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        for name, values in module.losses.items():
            mean = trainer.strategy.reduce(torch.stack(values).mean(), reduce_op="mean")
            row[f"train_{name}"] = float(mean)
        row |= {f"share_{name}": share for name, share in module.shares.items()}
        row |= {f"val_{name}": value for name, value in module.scores.items()}
        module.scores = {}
        row["seconds"] = round(time.monotonic() - self._start, 2)
        return row

    def _keep(self, module: SegmentationModule, improved: bool) -> None:
        """Copy an epoch's weights, to be written later."""
        network: nn.Module = module.ema or module.network
        state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        for name in ("last", "best") if improved else ("last",):
            self._unwritten[name] = state, self.history[-1]
        if improved:
            self._samples = pictures.samples(network, module.data.validation, module.config)

    def _store(self) -> None:
        from PIL import Image

        with replacing(self.folder / "curves.csv") as temporary:
            temporary.write_text(as_csv(self.history))
        with replacing(self.folder / "curves.png") as temporary:
            pictures.curves(self.history, temporary)
        for name, (state, row) in self._unwritten.items():
            path = self.folder / f"{name}.safetensors"
            save_checkpoint(path, state, with_metrics(self.info, row))
        if "best" in self._unwritten and self._samples is not None:
            with replacing(self.folder / "samples.png") as temporary:
                Image.fromarray(self._samples).save(temporary, format="PNG")
        self._unwritten.clear()

    def _tell(self, row: dict[str, float], module: SegmentationModule, improved: bool) -> None:
        validation = ""
        if "val_dice" in row:
            mark = " (best)" if improved else f" (best {self.best.get('val_dice', 0):.4f})"
            validation = f"  validation Dice {row['val_dice']:.4f}{mark}"
        self.say(
            f"stage {module.number}  epoch {int(row['epoch'])}/{module.stage.epochs}"
            f"  loss {row.get('train_loss', float('nan')):.4f}{validation}"
            f"  {row['seconds']:.0f} s  {100 * module.progress():.0f}% done"
        )


class _nowhere:
    """Other processes take part in saving but write nothing."""

    def __enter__(self) -> Path:
        return Path("unused")

    def __exit__(self, *error: object) -> None:
        return None


def with_metrics(info: Checkpoint, row: dict[str, float]) -> Checkpoint:
    """Return the header with an epoch's validation metrics."""
    metrics: dict[str, object] = {
        name: row[name] for name in ("epoch", "val_dice", "val_iou", "val_loss") if name in row
    }
    return dataclasses.replace(info, metrics=metrics, version=medisseg.__version__)


def as_csv(rows: list[dict[str, float]]) -> str:
    """Return rows as CSV text; a column that a row lacks is empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_json(path: Path, value: object) -> None:
    """Write JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")
