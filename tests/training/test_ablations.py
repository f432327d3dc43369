"""Studies: every row starts, a stopped one goes on, and the table holds what the runs gave."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from medisseg.config import LossConfig, TrainConfig, from_dict
from medisseg.convention import InputConvention
from medisseg.errors import UserError
from medisseg.schema import merge
from medisseg.training import ablations, command
from medisseg.training.batches import Arrays


def scores(folder: Path, dice: list[float]) -> None:
    folder.mkdir(parents=True)
    lines = [f"image{k},{value - 0.1:.6f},{value:.6f}" for k, value in enumerate(dice)]
    (folder / "scores.csv").write_text("\n".join(["name,iou,dice", *lines]) + "\n")


def test_the_table_has_mean_deviation_paper_and_a_paired_test(tmp_path: Path) -> None:
    for seed, shift in enumerate((0.0, 0.02, 0.04)):
        scores(tmp_path / "baseline" / f"seed{seed}", [0.5 + shift, 0.7 + shift])
        if seed < 2:
            scores(tmp_path / "elat" / f"seed{seed}", [0.6 + shift, 0.8 + shift])
    ablations.write_table(tmp_path, "ablation", "title", [0, 1, 2])
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [row["row"] for row in rows] == ["baseline", "+ ELAT"]
    assert rows[0]["mdice"] == pytest.approx(62.0)
    assert rows[0]["mdice_std"] == pytest.approx(statistics.stdev([60, 62, 64]), abs=0.01)
    assert (rows[0]["miou"], rows[0]["miou_paper"], rows[0]["mdice_paper"]) == (52.0, 84.3, 89.7)
    # Over seeds 0 and 1, which both have; the means of all seeds differ by 9.
    assert (rows[1]["seeds"], rows[1]["common_seeds"]) == (2, 2)
    assert rows[1]["dice_difference"] == pytest.approx(10.0)
    with open(tmp_path / "table.csv") as file:
        assert [line["row"] for line in csv.DictReader(file)] == ["baseline", "+ ELAT"]
    text = (tmp_path / "table.md").read_text()
    assert "| baseline | 3 | 52.00 ± 2.00 | 84.3 | 62.00 ± 2.00 | 89.7 |  |  |" in text


@pytest.mark.parametrize("study", sorted(ablations.ABLATIONS))
def test_every_row_builds_its_network_and_objective(study: str, tmp_path: Path) -> None:
    """Each row is a valid configuration whose second stage takes a step with a finite loss."""
    from medisseg.training.run import build, objective

    small = {"width": 8, "heads": 2, "decouple_width": 8, "aux_widths": [8] * 4}
    base = TrainConfig(preset="edge", stages=(2,), options=small)
    seen = set()
    for row in ablations.ABLATIONS[study]:
        config = ablations.changed(base, row)
        seen.add(json.dumps(config.to_dict()))
        network, _ = build(config, 2, tmp_path)
        images = torch.rand(2, 3, 64, 64)
        total, _ = objective(config, 2)(network.train()(images), (images[:, 0] > 0.5).long())
        total.backward()
        assert torch.isfinite(total), row.label
    assert len(seen) == len(ablations.ABLATIONS[study])


FORMS = [
    *ablations.ABLATIONS["variants"],
    *(row for row in ablations.ABLATIONS["dispersive"] if row.label.endswith(("form", "pixel"))),
    *(row for row in ablations.ABLATIONS["placement"] if row.label in ("middle", "late")),
]


@pytest.mark.parametrize("row", FORMS, ids=lambda row: row.label)
def test_a_short_training_of_every_variant_raises_dice(row: ablations.Row, tmp_path: Path) -> None:
    """Covariance once swamped the mask loss, and hinge had no gradient: training stood still."""
    from medisseg.training.run import build, objective

    torch.manual_seed(0)
    small = {"options": {"width": 8, "heads": 2, "decouple_width": 8, "aux_widths": [8] * 4}}
    base = merge(TrainConfig(preset="edge", stages=(2,)).to_dict(), small)
    config = from_dict(merge(base, dict(row.changes)))
    network, loss = build(config, 2, tmp_path)[0].train(), objective(config, 2)
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    centres = torch.tensor([[20, 24], [40, 44], [30, 20], [44, 28]])[:, :, None, None]
    masks = (((torch.stack([rows, columns]) - centres) ** 2).sum(1) < 150).long()
    images = masks[:, None].float().repeat(1, 3, 1, 1) + 0.2 * torch.randn(4, 3, 64, 64)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    dice = []
    for _ in range(25):
        output = network(images)
        found = output.logits.detach()[:, 0] > 0
        dice.append((2 * (found & (masks > 0)).sum() / (found.sum() + masks.sum())).item())
        total, _ = loss(output, masks)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert dice[-1] > max(dice[0] + 0.2, 0.5), [round(value, 2) for value in dice]


def test_the_published_form_has_no_gradient_and_ours_has() -> None:
    from medisseg.training.run import objective

    def gradient(variant: str) -> float:
        features = torch.randn(4, 32, 16, 16, generator=torch.Generator().manual_seed(0))
        features.requires_grad_()
        term = getattr(objective(from_dict({"loss": {"variant": variant}}), 2), "disperse")  # noqa: B009
        term({"early": features}).backward()
        assert features.grad is not None
        return float(features.grad.abs().max())

    assert gradient("published") == 0.0
    assert gradient("infonce_l2") > 1e-6


def test_a_study_stopped_between_runs_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def fake(config: TrainConfig, data: object) -> Path:
        trained.append(f"{config.options['activation']} {config.seed} {config.out}")
        Path(config.out).mkdir(parents=True, exist_ok=True)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return Path(config.out) / "best.safetensors"

    def fake_scores(best: Path, arrays: object, path: Path) -> None:
        path.write_text("name,iou,dice\na,0.5,0.6\nb,0.7,0.8\n")

    monkeypatch.setattr(ablations, "train", fake)
    monkeypatch.setattr(ablations, "write_scores", fake_scores)
    monkeypatch.setattr(ablations, "read_data", lambda config: type(
        "Data", (), {"validation": None, "warnings": ()}))  # fmt: skip
    config = TrainConfig(out=str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        ablations.run_ablation(config, "activation", [0, 1])
    table = tmp_path / "study-activation" / "table.json"
    assert [row["seeds"] for row in json.loads(table.read_text())["rows"]] == [1, 1]
    ablations.run_ablation(config, "activation", [0, 1])
    rows = json.loads(table.read_text())["rows"]
    assert [(row["row"], row["seeds"], row["mdice"]) for row in rows] == [
        ("TeLU", 2, 70.0), ("ReLU", 2, 70.0),
    ]  # fmt: skip
    assert trained[2].startswith("telu 1") and trained[-1].endswith("relu/seed1")


def test_volumes_are_scored_once_each(tmp_path: Path) -> None:
    """Of a slice where the network is right and one where it is wrong, not the mean of two."""
    from medisseg.checkpoint import save_checkpoint
    from medisseg.model.create import create_model
    from medisseg.training.batches import Arrays

    torch.manual_seed(0)
    model = create_model("unet", width=4).eval()
    path = save_checkpoint(tmp_path / "unet.safetensors", model, model.info)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    masks = torch.randint(0, 2, (3, 32, 32), dtype=torch.uint8)
    masks[1] = 0
    names = ["a_slice000", "a_slice001", "b_slice000"]
    ablations.write_scores(path, Arrays(images, masks, names), tmp_path / "scores.csv", batch=2)
    with open(tmp_path / "scores.csv") as file:
        got = {row["name"]: float(row["dice"]) for row in csv.DictReader(file)}
    ablations.write_scores(path, Arrays(images, masks, ["x", "y", "z"]), tmp_path / "alone.csv")
    with open(tmp_path / "alone.csv") as file:
        alone = [float(row["dice"]) for row in csv.DictReader(file)]
    found = ablations.load_checkpoint(path)(
        ablations.augment.normalize(images.float() / 255, model.info.convention)
    )[:, 0] > 0  # fmt: skip
    both = (found[:2] & (masks[:2] > 0)).sum().item()
    whole = 2 * both / (found[:2].sum() + masks[:2].sum()).item()
    assert got == pytest.approx({"a": whole, "b": alone[2]}, abs=1e-6)
    assert abs(whole - (alone[0] + alone[1]) / 2) > 0.05


def test_seeds() -> None:
    assert ablations.parse_seeds("3") == [0, 1, 2]
    assert ablations.parse_seeds("4,7") == [4, 7]
    for text in ("x", "0", "1,-2"):
        with pytest.raises(UserError, match="expected a count"):
            ablations.parse_seeds(text)


def test_the_command_offers_every_study() -> None:
    assert set(command.ABLATIONS) == set(ablations.ABLATIONS)


@pytest.mark.parametrize("study", ["variants", "dispersive", "placement", "tau"])
def test_a_study_of_the_dispersive_loss_has_it_on(study: str) -> None:
    off = TrainConfig(loss=LossConfig(dispersive=(0, 0))).to_dict()
    for row in ablations.ABLATIONS[study]:
        weights = from_dict(merge(off, dict(row.changes))).loss.dispersive
        assert (max(weights) > 0) is (row.label != "none"), row.label


def test_scores_are_one_a_volume_or_one_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One stray pixel in an empty slice: the slice has Dice 0, its volume loses next to nothing."""
    masks = torch.zeros(4, 8, 8, dtype=torch.uint8)
    masks[0, :4] = masks[2, :, :4] = masks[3, :2] = 1  # slice 1 is empty
    logits = torch.where(masks[:, None] > 0, 9.0, -9.0)
    logits[1, 0, 7, 7] = 9.0

    class Model:
        info = SimpleNamespace(convention=InputConvention(size=(16, 16)))

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return logits

    model = Model()
    monkeypatch.setattr(ablations, "load_checkpoint", lambda path, device: model)
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    found = {}
    for kind, names in (
        ("images", ["p", "q", "r", "s"]),
        ("slices", [f"{case}_slice{k:03d}" for case, k in zip("aabb", (0, 1, 0, 1), strict=True)]),
    ):
        path = tmp_path / f"{kind}.csv"
        ablations.write_scores(tmp_path, Arrays(images, masks, names), path)
        with open(path) as file:
            found[kind] = {row["name"]: float(row["dice"]) for row in csv.DictReader(file)}
    assert found["images"] == {"p": 1, "q": 0, "r": 1, "s": 1}
    assert found["slices"] == {"a": pytest.approx(64 / 65, abs=1e-6), "b": 1}


def test_rows_called_per_dimension_take_features_as_they_are() -> None:
    base = TrainConfig().to_dict()
    normalize = {
        row.label: from_dict(merge(base, dict(row.changes))).loss.normalize
        for row in ablations.ABLATIONS["dispersive"]
    }
    assert normalize["per dimension, image"] == normalize["per dimension, pixel"] == "none"
    assert normalize["unit length, image"] == normalize["unit length, pixel"] == "unit"
