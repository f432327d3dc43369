"""A run from data to checkpoint: resumed exactly, bounded in time, refusing what is wrong."""

from __future__ import annotations

import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import yaml

from medisseg.config import TrainConfig, load_config
from medisseg.errors import UserError

TINY = [
    "input.size=[64,64]",
    "options={width: 8, heads: 2, decouple_width: 8, aux_widths: [8, 8, 8, 8], head_width: 8}",
    "encoder_weights=null",
    "batch=4",
    "epochs=2",
    "hardware.threads=1",
    "hardware.progress=false",
    "split={train: null, validation: null, held_out: [], fraction: 0.3}",
]


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of twelve reddish images with a bright disc each."""
    from PIL import Image

    root = tmp_path_factory.mktemp("blobs")
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :64]
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for index in range(12):
        y, x, radius = rng.integers(16, 48), rng.integers(16, 48), rng.integers(8, 16)
        mask = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        image = rng.integers(60, 90, (64, 64, 3)) + 100 * mask[:, :, None] * [1, 0.8, 0.7]
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{index}.png")
        Image.fromarray((255 * mask).astype(np.uint8)).save(root / "masks" / f"{index}.png")
    return root


def tiny(blobs: Path, out: Path, *more: str) -> TrainConfig:
    return load_config("edge", [*TINY, f"data={blobs}", f"out={out}", *more])


def curve(folder: Path) -> list[dict[str, str]]:
    rows = list(csv.DictReader((folder / "curves.csv").open()))
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_both_stages_leave_a_whole_run_folder(blobs: Path, tmp_path: Path) -> None:
    from medisseg.model.loading import load_checkpoint
    from medisseg.training.run import train

    best = train(tiny(blobs, tmp_path / "run"))
    out = best.parent
    for name in ("config.yaml", "curves.csv", "curves.png", "samples.png", "last.safetensors"):
        assert (out / name).stat().st_size > 0
    assert list((out / "stage2" / "tensorboard").glob("events*"))
    assert not list(out.rglob("*.part")) and not list(out.rglob("resume.ckpt"))
    for stage, terms in (
        (1, {"mask", "consistency", "dispersive"}),
        (2, {"mask", "foreground", "background", "complementary", "dispersive"}),
    ):
        for row in curve(out / f"stage{stage}"):
            shares = {key: float(row[key]) for key in row if key.startswith("share_")}
            assert set(shares) == {f"share_{term}" for term in terms}
            assert sum(shares.values()) == pytest.approx(1, abs=1e-3) and min(shares.values()) >= 0
    assert load_config(out / "config.yaml").to_dict() == tiny(blobs, out).to_dict()

    model = load_checkpoint(best)
    summary = json.loads((out / "summary.json").read_text())
    assert model.info.metrics["val_dice"] == summary["stages"][1]["best"]["val_dice"]
    assert (model.info.stage, model.info.convention.size) == (2, (64, 64))
    assert model.info.data == blobs.name
    names = [
        (out / "splits" / f"{part}.txt").read_text().split() for part in ("train", "validation")
    ]
    assert sorted(sum(names, [])) == sorted(str(index) for index in range(12))


def test_a_trained_network_is_trained_further(blobs: Path, tmp_path: Path) -> None:
    from medisseg.checkpoint import read_state
    from medisseg.training.run import train

    best = train(tiny(blobs, tmp_path / "first", "stages=[2]"))
    further = ("stages=[2]", f"start_from={best}")
    still = train(tiny(blobs, tmp_path / "still", *further, "epochs=1", "lr=1e-12", "ema=0.9"))
    before, after = read_state(best), read_state(still)
    for name, weights in before.items():
        if weights.ndim == 4:
            np.testing.assert_allclose(after[name], weights, atol=1e-6)
    with pytest.raises(UserError, match="has options .*; give both the same"):
        train(tiny(blobs, tmp_path / "other", *further, "options.activation=relu"))
    with pytest.raises(UserError, match="start_from goes with stages="):
        tiny(blobs, tmp_path / "both", f"start_from={best}")


@pytest.mark.parametrize(("store_seconds", "written"), [(0, 3), (1000, 1)])
def test_a_killed_run_goes_on_with_the_same_curve(
    blobs: Path, tmp_path: Path, store_seconds: int, written: int
) -> None:
    from medisseg.training.run import train

    settings = ("stages=[1]", "epochs=5", "ema=0.9", "schedule=plateau")
    train(tiny(blobs, tmp_path / "whole", *settings))
    often = f"hardware.store_seconds={store_seconds}"
    overrides = [*TINY, f"data={blobs}", f"out={tmp_path / 'killed'}", *settings, often]
    arguments = [sys.executable, "-u", "-m", "medisseg", "train", "edge", *overrides]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("epoch 4/5" in line for line in process.stdout)
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "killed" / "summary.json").exists()
    assert len(curve(tmp_path / "killed" / "stage1")) in (written, written + 1)

    train(tiny(blobs, tmp_path / "killed", *settings))
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    assert len(curve(tmp_path / "whole")) == 5


def test_a_budget_ends_the_stages_in_time(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that every look advances by 400 ms, so that the machine's load does not matter."""
    from medisseg.training import modules
    from medisseg.training.run import train

    ticks = itertools.count(step=0.4)
    clock = types.SimpleNamespace(monotonic=lambda: next(ticks))
    monkeypatch.setattr(modules, "time", clock)
    train(tiny(blobs, tmp_path / "run", "epochs=100000", "budget_minutes=0.2"))
    stages = json.loads((tmp_path / "run" / "summary.json").read_text())["stages"]
    # Twelve seconds less the time to read the images, one part to five.
    assert 1 <= stages[0]["seconds"] <= 2.9 and 4 <= stages[1]["seconds"] <= 11
    rows = curve(tmp_path / "run")
    assert 2 <= len(rows) < 20
    # The cosine was fitted to the time: the last step's rate is near its end.
    assert float(rows[-1]["lr"]) < 0.2 * 1e-3 < max(float(row["lr"]) for row in rows)


def test_the_last_epoch_is_validated_whatever_ends_the_stage(blobs: Path, tmp_path: Path) -> None:
    from medisseg.training.run import train

    train(tiny(blobs, tmp_path / "run", "stages=[1]", "epochs=3", "validate_every=2"))
    assert [bool(row["val_dice"]) for row in curve(tmp_path / "run")] == [False, True, True]
    settings = ("stages=[1]", "epochs=100000", "validate_every=1000", "budget_minutes=0.05")
    train(tiny(blobs, tmp_path / "timed", *settings))
    validated = [bool(row["val_dice"]) for row in curve(tmp_path / "timed")]
    assert validated == [False] * (len(validated) - 1) + [True]


def test_interrupted_run_can_go_on(blobs: Path, tmp_path: Path) -> None:
    overrides = [*TINY, f"data={blobs}", f"out={tmp_path / 'run'}", "stages=[1]", "epochs=500"]
    arguments = [sys.executable, "-m", "medisseg", "train", "edge", *overrides]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        until = time.monotonic() + 120
        while not (tmp_path / "run" / "stage1" / "resume.ckpt").is_file():
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        output, error = process.communicate(timeout=60)
    assert process.returncode == 130, error.decode()
    assert b"the same command goes on" in output
    assert b"Traceback" not in error
    assert (tmp_path / "run" / "stage1" / "resume.ckpt").is_file()


def test_a_nan_loss_stops_and_keeps_the_last_good_checkpoint(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medisseg.losses import objective
    from medisseg.model.loading import load_checkpoint
    from medisseg.training.run import train

    original, calls = objective.consistency_loss, []

    def broken(*arguments):
        calls.append(1)
        return original(*arguments) * (float("nan") if len(calls) > 4 else 1)

    monkeypatch.setattr(objective, "consistency_loss", broken)
    with pytest.raises(UserError, match=r"nan in stage 1, epoch 3, step 4 \(part: consistency"):
        train(tiny(blobs, tmp_path / "run", "epochs=9"))
    load_checkpoint(tmp_path / "run" / "stage1" / "best.safetensors")
    assert len(curve(tmp_path / "run" / "stage1")) == 2


def test_a_last_step_that_breaks_the_weights_keeps_the_epoch_before(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from medisseg.checkpoint import read_state
    from medisseg.training.modules import SegmentationModule
    from medisseg.training.run import train

    end = SegmentationModule.on_train_batch_end

    def broken(self, *arguments):
        end(self, *arguments)
        if self.current_epoch == 1 and self.trainer.is_last_batch:
            with torch.no_grad():
                next(self.network.parameters()).fill_(float("nan"))

    monkeypatch.setattr(SegmentationModule, "on_train_batch_end", broken)
    with pytest.raises(UserError, match="stage 1, epoch 2 ended with weights that are not finite"):
        train(tiny(blobs, tmp_path / "run", "epochs=3"))
    last = read_state(tmp_path / "run" / "stage1" / "last.safetensors")
    assert all(weights.isfinite().all() for weights in last.values())


def test_other_settings_in_the_same_folder_are_refused(blobs: Path, tmp_path: Path) -> None:
    from medisseg.training.run import prepare_folder

    prepare_folder(tiny(blobs, tmp_path), tmp_path)
    (tmp_path / "stage1").mkdir()
    (tmp_path / "stage1" / "resume.ckpt").touch()
    prepare_folder(tiny(blobs, tmp_path, "hardware.threads=2"), tmp_path)
    with pytest.raises(UserError, match=r"other settings \(stage2\.lr\)"):
        prepare_folder(tiny(blobs, tmp_path, "stage2.lr=0.5"), tmp_path)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["stage2"]["lr"] == 1e-3


def test_what_was_mistyped_does_not_keep_the_folder(blobs: Path, tmp_path: Path) -> None:
    from medisseg.training.run import train

    out, short = tmp_path / "run", ("stages=[1]", "epochs=1", "ema=0")
    with pytest.raises(UserError, match="no data folder"):
        train(tiny(blobs, out, *short, "data=nowhere"))
    with pytest.raises(UserError, match="attention is 'cbta'"):
        train(tiny(blobs, out, *short, "options.attention=cbta"))
    assert not (out / "splits").exists()  # said before the images were read
    assert train(tiny(blobs, out, *short)).is_file()
    with pytest.raises(UserError, match="other settings"):
        train(tiny(blobs, out, *short, "seed=9"))


def test_a_full_disk_is_said_in_one_line(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medisseg.training import recorder
    from medisseg.training.run import train

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recorder, "save_checkpoint", full)
    with pytest.raises(UserError, match="no space left"):
        train(tiny(blobs, tmp_path / "run"))


def test_half_precision_clips_gradients(blobs: Path, tmp_path: Path) -> None:
    from medisseg.training.run import train

    half = ("stages=[2]", "hardware.precision=bf16", "epochs=3", "optimizer=adamw", "ema=0")
    train(tiny(blobs, tmp_path / "free", *half, "clip=0"))
    train(tiny(blobs, tmp_path / "clipped", *half, "clip=1e-9"))
    free, clipped = (
        [float(row["train_loss"]) for row in curve(tmp_path / name)] for name in ("free", "clipped")
    )
    assert free[0] == pytest.approx(clipped[0], abs=1) and free != clipped


def test_patience_ends_a_stage(blobs: Path, tmp_path: Path) -> None:
    from medisseg.training.run import train

    settings = ("stages=[1]", "epochs=30", "lr=1e-12", "ema=0", "patience=2")
    train(tiny(blobs, tmp_path / "run", *settings))
    rows = [float(row["val_dice"]) for row in curve(tmp_path / "run")]
    assert len(rows) < 30
    assert max(rows[:-2]) >= max(rows[-2:])


def test_curves_draw_the_shares_of_the_gradient(tmp_path: Path) -> None:
    """In a third panel: other shares change it and nothing else; without any it is not there."""
    from PIL import Image

    from medisseg.training.pictures import curves

    def drawn(*shares: float) -> np.ndarray:
        history = [
            {"epoch": 1.0, "train_loss": 1.0, "share_mask": 0.5, "share_dispersive": 0.5},
            {"epoch": 2.0, "train_loss": 0.5, "share_mask": 0.6, "share_dispersive": 0.4},
        ]
        history[1] |= dict(zip(("share_mask", "share_dispersive"), shares, strict=False))
        if not shares:
            history = [{"epoch": row["epoch"], "train_loss": row["train_loss"]} for row in history]
        curves(history, tmp_path / "curves.png")
        return np.asarray(Image.open(tmp_path / "curves.png"))

    one, two, none = drawn(0.6, 0.4), drawn(0.9, 0.1), drawn()
    third = one.shape[1] * 2 // 3
    assert np.array_equal(one[:, :third], two[:, :third])
    assert not np.array_equal(one[:, third:], two[:, third:])
    assert (one.shape[1], none.shape[1]) == (1350, 900)
