"""A training run: both stages, one folder, resumable at any epoch.

config -> data in memory -> stage 1 -> its best encoder -> stage 2 -> best.safetensors
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from medisseg.checkpoint import Checkpoint
from medisseg.config import TrainConfig, save_config
from medisseg.device import pick_device
from medisseg.errors import UserError
from medisseg.files import replacing
from medisseg.labels import make_labels
from medisseg.model.create import create_model
from medisseg.model.loading import load_encoder, load_network
from medisseg.model.network import Network
from medisseg.schema import Json
from medisseg.training.batches import Data, read_data, source_names
from medisseg.training.checks import check, differences, starting_weights
from medisseg.training.modules import SegmentationModule
from medisseg.training.recorder import RESUME, Recorder, write_json
from medisseg.untrusted import read_yaml

if TYPE_CHECKING:
    from medisseg.losses.objective import StageOneObjective, StageTwoObjective

# What a resumed run may change: where it runs, not what it computes.
FREE = ("hardware", "out")


def train(config: TrainConfig, data: Data | None = None) -> Path:
    """Run the stages of a configuration, or go on with them; return the best checkpoint.

    A folder that holds an unfinished run of the same configuration is resumed at its last stored
    epoch, with the curve of a run that was never interrupted; a finished one is left as it is.

    Args:
        config: What to train.
        data: The images, when the caller has them in memory already.

    Raises:
        UserError: Wrong data or settings, a NaN loss, a folder of another run, a full disk.
        KeyboardInterrupt: Ctrl-C; the same call goes on later.
    """
    start = time.monotonic()
    out = Path(config.out)
    log = printer()
    try:
        for warning in check(config):
            log(f"warning: {warning}")
        if first_process():
            prepare_folder(config, out)
        if data is None:
            data = read_data(config)
            for note in data.notes:
                log(note)
            for warning in data.warnings:
                log(f"warning: {warning}")
        if first_process():
            write_splits(data, out)
        sources = [*config.data, *config.negatives]
        log(
            f"{len(data.train)} training and {len(data.validation)} validation images of "
            f"{', '.join(source_names(sources))}, in memory after {time.monotonic() - start:.0f} s"
        )
        spent = time.monotonic() - start
        for number in config.stages:
            spent += run_stage(config, number, data, out, budget(config, number, spent), log)
        if first_process():
            finish(config, out, log)
        return out / "best.safetensors"
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"no space left in {out}; free some and run the same again") from error
        raise
    except KeyboardInterrupt:
        seconds = config.hardware.store_seconds
        log(
            f"stopped; the same command goes on after the last epoch that {out} holds, stored "
            f"at most every {seconds:g} s (hardware.store_seconds)"
        )
        raise


def budget(config: TrainConfig, number: int, spent: float) -> float | None:
    """Return the seconds a stage may take: its share of what is left, all of it for the last."""
    if config.budget_minutes is None:
        return None
    left = max(1.0, 60 * config.budget_minutes - spent)
    after = [config.stage(stage).share for stage in config.stages if stage > number]
    return left * config.stage(number).share / (config.stage(number).share + sum(after))


def run_stage(
    config: TrainConfig,
    number: int,
    data: Data,
    out: Path,
    seconds: float | None,
    log: Callable[[str], None],
) -> float:
    """Train one stage, or what is left of it; return the seconds it took in all."""
    folder = out / f"stage{number}"
    done = folder / "summary.json"
    if done.is_file():
        summary = json.loads(done.read_text())
        log(f"stage {number} is finished: validation Dice {summary['best']['val_dice']:.4f}")
        return float(summary["seconds"])
    folder.mkdir(parents=True, exist_ok=True)
    network, info = build(config, number, out, log)
    module = SegmentationModule(network, objective(config, number), config, number, data, seconds)
    if config.hardware.compile:
        module.network.compile()
    recorder = Recorder(folder, info, log, config.hardware.store_seconds)
    resume = folder / RESUME
    if resume.is_file():
        log(f"stage {number}: going on after the last stored epoch")
    fit(module, recorder, config, folder, resume if resume.is_file() else None)
    summary = {
        "stage": number,
        "best": recorder.best,
        "epochs": len(recorder.history),
        "seconds": round(module.elapsed, 1),
    }
    if first_process():
        write_json(done, summary)
        resume.unlink(missing_ok=True)
    return module.elapsed


def build(
    config: TrainConfig, number: int, out: Path, log: Callable[[str], None] = print
) -> tuple[nn.Module, Checkpoint]:
    """Return the stage's network, its weights from what came before, and its header."""
    torch.manual_seed(config.seed)
    network = create_model(
        config.preset,
        stage=number,
        classes=config.classes,
        encoder_weights=starting_weights(config),
        **config.options,
    )
    if config.start_from is not None:
        fresh = load_network(network, config.start_from)
        if fresh:
            log(f"{config.start_from} has other classes: {', '.join(fresh)} start anew")
    ours = out / "stage1" / f"{config.stage_one_epoch}.safetensors"
    before = ours if 1 in config.stages else config.stage_one
    if number == 2 and before is not None:
        load_encoder(network, before)
    assert network.info is not None
    name = config.data_name or " + ".join(source_names([*config.data, *config.negatives]))
    labels = make_labels(config.classes, config.class_names, config.class_colors)
    info = dataclasses.replace(network.info, convention=config.input, data=name, labels=labels)
    return network, info


def objective(config: TrainConfig, number: int) -> StageOneObjective | StageTwoObjective:
    """Return the stage's sum of losses."""
    from medisseg.losses.dispersive import DispersiveOptions
    from medisseg.losses.mask import MaskLoss
    from medisseg.losses.objective import StageOneObjective, StageTwoObjective
    from medisseg.losses.published import PublishedDispersiveTerm

    loss = config.loss
    published = loss.variant == "published"
    variant = "infonce_l2" if published else loss.variant
    dispersive = DispersiveOptions(
        variant,
        loss.placement,
        loss.granularity,
        loss.tau,
        loss.margin,
        loss.normalize,
        loss.epsilon,
    )
    weight = config.dispersive_weights()[number - 1]
    mask = MaskLoss(
        loss.mask,
        loss.gamma,
        loss.tversky,
        loss.boundary,
        loss.class_weights,
        loss.dice_of_empty,
    )
    total: StageOneObjective | StageTwoObjective
    if number == 1:
        total = StageOneObjective(weight, dispersive, loss.consistency, mask)
    else:
        total = StageTwoObjective(weight, dispersive, loss.area_weight, mask)
    if published:
        total.disperse = PublishedDispersiveTerm(loss.tau)  # type: ignore[assignment]
    return total


def fit(
    module: SegmentationModule,
    recorder: Recorder,
    config: TrainConfig,
    folder: Path,
    resume: Path | None,
) -> None:
    """Hand the stage to Lightning's Trainer; under ``torchrun`` on all its processes."""
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import RichProgressBar
    from lightning.pytorch.loggers import TensorBoardLogger

    hardware = config.hardware
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    where = device(config)
    progress = hardware.progress and sys.stdout.isatty()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    trainer = Trainer(
        **where,
        devices=local,
        num_nodes=world // local,
        strategy=strategy(module.network) if world > 1 else "auto",
        sync_batchnorm=world > 1 and where["accelerator"] == "cuda",  # the CPU has none
        max_epochs=module.stage.epochs,
        check_val_every_n_epoch=module.stage.validate_every,
        reload_dataloaders_every_n_epochs=1,
        gradient_clip_val=module.stage.clip or None,
        accumulate_grad_batches=module.stage.accumulate,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=progress,
        callbacks=[recorder, *([RichProgressBar()] if progress else [])],
        logger=TensorBoardLogger(folder, name="tensorboard", version=""),
        log_every_n_steps=1,
    )
    try:
        trainer.fit(module, ckpt_path=resume, weights_only=True)
    except SystemExit as error:  # Lightning's answer to Ctrl-C
        if trainer.interrupted:
            raise KeyboardInterrupt from error
        raise


def strategy(network: nn.Module) -> str:
    """Return Lightning's name of data-parallel training; a network that is not ours may have
    parameters without a gradient (U-Net++ has three unused heads), which must then be found."""
    return "ddp" if isinstance(network, Network) else "ddp_find_unused_parameters_true"


def device(config: TrainConfig) -> Json:
    """Return the Trainer's accelerator and precision.

    Raises:
        UserError: A GPU is asked for and there is none, or fp16 on a CPU.
    """
    hardware = config.hardware
    if hardware.threads:
        torch.set_num_threads(hardware.threads)
    kind = pick_device(hardware.device, "hardware.device").split(":")[0]
    if kind == "cpu" and hardware.precision == "fp16":
        raise UserError("fp16 training needs a GPU; use hardware.precision=bf16 or fp32")
    if hardware.cuda_graph and (kind == "cpu" or int(os.environ.get("WORLD_SIZE", "1")) > 1):
        raise UserError("hardware.cuda_graph needs one GPU in one process; leave it out")
    names = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
    return {"accelerator": kind, "precision": names[hardware.precision]}


def prepare_folder(config: TrainConfig, out: Path) -> None:
    """Write the configuration into the run folder, or check that it is the one already there.

    A folder without a complete epoch holds nothing to lose: its settings may still be changed.

    Raises:
        UserError: The folder holds a run of another configuration.
    """
    path = out / "config.yaml"
    if path.is_file() and any(
        file.name in (RESUME, "summary.json") for file in out.glob("stage[12]/*")
    ):
        there = read_yaml(path)
        changed = [
            key for key in differences(there, config.to_dict()) if key.split(".")[0] not in FREE
        ]
        if changed:
            raise UserError(
                f"{out} holds a run with other settings ({', '.join(changed[:4])}); "
                "choose another out=, or repeat that run's settings to go on with it"
            )
    with replacing(path) as temporary:
        save_config(config, temporary)


def write_splits(data: Data, out: Path) -> None:
    """Store which images were trained on and which chose the epoch."""
    for name, arrays in (("train", data.train), ("validation", data.validation)):
        with replacing(out / "splits" / f"{name}.txt") as temporary:
            temporary.write_text("\n".join(arrays.names) + "\n")


def finish(config: TrainConfig, out: Path, log: Callable[[str], None]) -> None:
    """Copy the last stage's checkpoints and pictures to the top of the run folder."""
    last = out / f"stage{config.stages[-1]}"
    for name in ("best.safetensors", "last.safetensors", "curves.png", "curves.csv", "samples.png"):
        with replacing(out / name) as temporary:
            shutil.copyfile(last / name, temporary)
    summaries = [
        json.loads((out / f"stage{n}" / "summary.json").read_text()) for n in config.stages
    ]
    write_json(out / "summary.json", {"name": config.name, "stages": summaries})
    best = summaries[-1]["best"]
    log(
        f"validation Dice {best['val_dice']:.4f}, IoU {best['val_iou']:.4f}: {out}/best.safetensors"
    )


def first_process() -> bool:
    """Return whether this process writes the run folder: alone, or the first under torchrun."""
    return int(os.environ.get("RANK", "0")) == 0


def printer() -> Callable[[str], None]:
    """Return a function that prints a line on the first process alone."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)

    def log(text: str) -> None:
        if first_process():
            console.print(text, markup=False)

    return log
