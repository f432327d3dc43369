"""The results page: grouped by seed, tested image by image, the paper beside, always the same."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks import results, summaries
from benchmarks.results_page import page
from medisseg.config import TrainConfig
from medisseg.errors import UserError

KEYS = ("miou", "mdsc", "recall", "precision", "hd95", "boundary_iou", "calibration_error")


def write_run(root: Path, dice: float, seed: int) -> tuple[Path, Path]:
    """Write what ``medisseg train`` and ``medisseg evaluate`` leave; Dice varies by image."""
    run, evaluation = root / "run", root / "evaluation"
    for folder in (run, evaluation):
        folder.mkdir(parents=True)
    config = TrainConfig(seed=seed, preset="edge", encoder_weights="imagenet", budget_minutes=5.0)
    (run / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    (run / "curves.csv").write_text("epoch,train_loss\n1,0.5\n")
    values = np.clip(dice + np.linspace(-0.05, 0.05, 20), 0, 1)
    averages = {key: dice - 0.1 for key in KEYS} | {"mdsc": float(values.mean())}
    averages |= {"intervals": {key: [dice - 0.2, dice + 0.05] for key in KEYS}}  # type: ignore[dict-item]
    reported = {**averages, "images": 20, "native": averages}
    (evaluation / "metrics.json").write_text(json.dumps(reported))
    (evaluation / "evaluation.json").write_text("{}")
    with open(evaluation / "per_image.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["image", "dice"], *([f"i{k}", v] for k, v in enumerate(values))])
    return run, evaluation


def collect(tmp_path: Path, name: str, dice: float, seed: int, **about: str) -> None:
    reported = {"table": "Kvasir-SEG", "label": "Med-DisSeg", "protocol": "paper", **about}
    run, evaluation = write_run(tmp_path / "made" / name, dice, seed)
    summaries.add(run, evaluation, name, reported, tmp_path / "runs")


def cells(text: str, start: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_seeds_share_a_row_beside_the_papers_number(tmp_path: Path) -> None:
    for seed, dice in enumerate((0.90, 0.91, 0.92)):
        collect(tmp_path, f"full-{seed}", dice, seed)
    text = page(summaries.read_runs(tmp_path / "runs"))
    row = cells(text, "Med-DisSeg")
    assert row[1:4] == ["paper", "3", "20"]
    assert row[4] == "81.0 ± 1.0" and row[5] == "91.0 ± 1.0"
    assert row[-2:] == ["85.9 / 91.6", "-4.9"]
    reported = text.partition("What each run was:")[2]
    assert cells(reported, "Med-DisSeg")[2:] == [
        "infonce_l2, image, early, unit length",
        "imagenet (encoder)",
        "adam, lr 0.0001, batch 4",
        "cosine fitted to 5 minutes; 1 of at most 300 epochs, "
        "after a number not recorded of at most 300 in stage 1",
        "not recorded",
    ]
    table = text.partition("### Table 1")[2]
    assert cells(table, "ConDSeg")[5:9] == ["84.6", "90.5", "92.3", "91.7"]
    ours = cells(table, "**ours: Med-DisSeg** (paper)")
    assert ours[1:] == ["–"] * 4 + ["81.0", "91.0", "81.0", "81.0"] + ["–"] * 4
    assert cells(text.partition("### Table 2")[2], "**ours: not run**")[1:] == ["–"] * 4
    assert text == page(summaries.read_runs(tmp_path / "runs"))
    assert "[full-1](../../benchmarks/results/runs/full-1)" in text


def test_a_row_says_its_epochs_its_start_and_how_often_its_images_were_measured(
    tmp_path: Path,
) -> None:
    run, evaluation = write_run(tmp_path / "made", 0.9, 0)
    config = TrainConfig(
        stages=(2,), start_from="/home/me/runs/first-run/best.safetensors", budget_minutes=None
    ).to_dict()
    config["split"]["validation"] = "test"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "curves.csv").write_text("epoch,val_dice\n1,0.5\n2,\n3,0.6\n")
    (evaluation / "evaluation.json").write_text('{"split": "test"}')
    about = {"table": "T", "label": "L", "protocol": "paper"}
    summaries.add(run, evaluation, "a", about, tmp_path / "runs")
    row = cells(page(summaries.read_runs(tmp_path / "runs")).partition("each run was:")[2], "L")
    assert row[3] == "first-run/best.safetensors (whole network)"
    assert row[5:] == ["cosine; 3 of 300 epochs", "at least 3 times, with stage 2's validations"]
    config |= {"stages": [1, 2], "start_from": None, "budget_minutes": 2.0}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "stage1").mkdir()
    (run / "stage1" / "summary.json").write_text('{"stage": 1, "epochs": 7}')
    summaries.add(run, evaluation, "b", {**about, "label": "M", "looks": 1}, tmp_path / "runs")
    row = cells(page(summaries.read_runs(tmp_path / "runs")).partition("each run was:")[2], "M")
    assert row[5:] == [
        "cosine fitted to 2 minutes; 3 of at most 300 epochs, after 7 of at most 300 in stage 1",
        "once",
    ]


def test_looks_of_a_gpu_run_are_its_validations_and_its_reports(tmp_path: Path) -> None:
    from benchmarks.training import Job, looks

    job = Job("a", "glas", "short", (), "GlaS", reported="test")
    for number, column in ((1, "1,0.5\n2,\n"), (2, "1,\n2,0.5\n3,0.6\n")):
        (tmp_path / f"stage{number}").mkdir()
        (tmp_path / f"stage{number}" / "curves.csv").write_text("epoch,val_dice\n" + column)
    for validation, times in (("test", 3 + 2), (None, 2)):
        settings = {"split": {"validation": validation}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
        assert looks(job, tmp_path) == times


def test_one_seed_shows_the_interval_and_an_unknown_row_no_paper(tmp_path: Path) -> None:
    collect(tmp_path, "edge", 0.88, 0, label="edge", protocol="held-out")
    row = cells(page(summaries.read_runs(tmp_path / "runs")), "edge")
    assert row[5] == "88.0 (68.0 to 93.0)" and row[-2:] == ["–", "–"]
    assert row[8] == "0.8 (0.7 to 0.9)"  # HD95 is in pixels, not percent


def test_variants_are_tested_image_by_image_on_common_seeds(tmp_path: Path) -> None:
    study = {"table": "Does dispersion matter?"}
    for seed in range(2):
        collect(tmp_path, f"none-{seed}", 0.80, seed, label="none", **study)
        collect(tmp_path, f"ours-{seed}", 0.83, seed, label="ours", against="none", **study)
    collect(tmp_path, "ours-7", 0.20, 7, label="ours", against="none", **study)
    text = page(summaries.read_runs(tmp_path / "runs"))
    line = next(line for line in text.splitlines() if line.startswith("| ours | none"))
    assert "+3.00" in line and "20 / 0 of 20" in line
    assert float(line.split("|")[5]) < 1e-4


def test_collapse_measures_are_shown(tmp_path: Path) -> None:
    run, evaluation = write_run(tmp_path / "made", 0.9, 0)
    measured = {"effective_rank": 12.5, "uniformity": -2.0, "mean_cosine": 0.25}
    reported = {"placement": "early", "models": [{"name": "a", "image": measured}]}
    (evaluation / "explain.json").write_text(json.dumps(reported))
    about = {"table": "T", "label": "L", "protocol": "paper", "note": "A note."}
    summaries.add(run, evaluation, "a", about, tmp_path / "runs")
    text = page(summaries.read_runs(tmp_path / "runs"))
    assert "| L | early, image | 12.50 | -2.00 | 0.25 |" in text and "A note." in text


def test_damaged_or_partial_summaries_are_refused(tmp_path: Path) -> None:
    run, evaluation = write_run(tmp_path / "made", 0.9, 0)
    about = {"table": "T", "label": "L", "protocol": "paper"}
    (evaluation / "metrics.json").rename(tmp_path / "away.json")
    with pytest.raises(UserError, match="metrics.json not found"):
        summaries.add(run, evaluation, "a", about, tmp_path / "runs")
    (tmp_path / "away.json").rename(evaluation / "metrics.json")
    with pytest.raises(UserError, match="expected paper or held-out"):
        summaries.add(run, evaluation, "a", {**about, "protocol": "best"}, tmp_path / "runs")
    assert not list((tmp_path / "runs").glob("*"))
    summaries.add(run, evaluation, "a", about, tmp_path / "runs")
    (tmp_path / "runs/a/per_image.csv").unlink()
    with pytest.raises(UserError, match="no whole run summary"):
        summaries.read_runs(tmp_path / "runs")


def test_page_in_the_repository_is_up_to_date() -> None:
    assert results.main(["--check"]) == 0
