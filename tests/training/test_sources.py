"""Several data folders and images without lesion in one run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medisseg.config import load_config
from medisseg.data.options import DataFolder
from medisseg.errors import UserError
from medisseg.losses.mask import mask_loss
from medisseg.losses.objective import StageTwoObjective
from medisseg.model.create import create_model
from medisseg.training.batches import read_data, source_names, train_order
from medisseg.training.modules import image_scores


def folder(root: Path, count: int, tone: int, masks: bool = True) -> Path:
    """Images of one tone; with masks they hold a square."""
    for kind in ("images", "masks") if masks else ("images",):
        (root / kind).mkdir(parents=True)
        for k in range(count):
            pixels = np.full((32, 32), tone if kind == "images" else 0, np.uint8)
            pixels[8:16, 8:16] = tone + 9 if kind == "images" else 255
            Image.fromarray(pixels).save(root / kind / f"{k + 1}.png")
    return root


def test_folders_with_weights_and_their_own_lists(tmp_path: Path) -> None:
    one, two = folder(tmp_path / "one", 10, 10), folder(tmp_path / "two", 6, 100)
    clean = folder(tmp_path / "clean", 20, 200, masks=False)
    (two / "mine.txt").write_text("1\n2\n3\n4\n")
    (two / "other.txt").write_text("5\n")
    table = f"[{one}, {{path: {two}, weight: 2.5, split: {{train: mine, validation: other}}}}]"
    config = load_config(
        "edge",
        [f"data={table}", f"negatives={clean}", "split.train=", "split.held_out=[]",
         "input.size=[32,32]", "split.fraction=0.2"],
    )  # fmt: skip
    data = read_data(config)
    assert [len(part) for part in (data.train, data.validation)] == [8 + 4 + 16, 2 + 1 + 4]
    assert data.train.names[8] == "two/1" and data.validation.names[-1] == "clean/images/20"
    assert data.train.drawn == 8 + 10 + 16
    tones = {"one": 10, "two": 100, "clean": 200}
    for arrays in (data.train, data.validation):
        assert arrays.images[:, 0, 0, 0].tolist() == [tones[name] for name in arrays.sources]
        lesions = arrays.masks.flatten(1).sum(1).tolist()
        assert lesions == [0 if name == "clean" else 64 for name in arrays.sources]
    assert read_data(load_config("edge", [
        f"data={one},{two}", "split.train=", "split.held_out=[]", "input.size=[32,32]",
    ])).train.sources.count("two") == 5  # fmt: skip


def test_folders_have_names_that_tell_them_apart() -> None:
    def named(*paths: str) -> list[str]:
        return source_names([DataFolder(path) for path in paths])

    assert named("/d/kvasir", "/d/free/train") == ["kvasir", "free/train"]
    assert named("/a/polyps", "/b/polyps") == ["a/polyps", "b/polyps"]


def test_weights_draw_images_as_often_as_they_say() -> None:
    weights = np.array([1.0] * 6 + [2.0] * 2 + [0.25] * 8)
    counts = np.zeros(16)
    for epoch in range(40):
        order = np.concatenate(train_order(16, 4, (0, 3, epoch), weights))
        assert len(order) == 12 and len(set(order.tolist())) == 12  # a second time, another index
        counts += np.bincount(order % 16, minlength=16)
    assert (counts[:6] == 40).all() and (counts[6:8] == 80).all()
    assert counts[8:].min() >= 3 and counts[8:].max() <= 20 and counts[8:].sum() == 80
    plain, ones = train_order(9, 4, (1,)), train_order(9, 4, (1,), np.ones(9))
    assert np.array_equal(plain, ones)
    assert np.array_equal(np.concatenate(plain), np.random.default_rng((1,)).permutation(9)[:8])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("negatives=nowhere", "no folder nowhere"),
        ("data=[{path: polyps, wheight: 2}]", "did you mean 'weight'"),
        ("data=[{path: polyps, weight: -1}]", "weight is -1"),
        ("data=[3]", "data is 3; expected a table"),
        ("data=[]", "data is empty"),
        ("data={one},{one}", "is given twice"),
    ],
)
def test_wrong_folders_are_named(tmp_path: Path, override: str, message: str) -> None:
    one = folder(tmp_path / "one", 4, 10)
    plain = [f"data={one}", "split.train=", "split.held_out=[]", "input.size=[32,32]"]
    with pytest.raises(UserError, match=message):
        read_data(load_config("edge", [*plain, override.replace("{one}", str(one))]))


def test_an_empty_mask_pulls_to_silence_with_bounded_force() -> None:
    target = torch.zeros(2, 64, 64)
    for level in (-12.0, -6.0, 0.0, 8.0):
        logits = torch.full((2, 1, 64, 64), level, requires_grad=True)
        loss = mask_loss(logits, target)
        loss.backward()
        assert torch.isfinite(loss) and (logits.grad >= 0).all()
        assert logits.grad.sum() < 2.0  # at most 1 of cross-entropy and 1 of Dice
    silent = mask_loss(torch.full((2, 1, 64, 64), -12.0), target)
    assert silent < 0.03
    scores = image_scores(torch.full((2, 1, 8, 8), -1.0), torch.zeros(2, 8, 8).long())
    assert scores[:, 1:].tolist() == [[1.0, 1.0]] * 2


def test_stage_two_trains_on_a_batch_without_any_lesion() -> None:
    torch.manual_seed(0)
    network = create_model("edge").train()
    objective = StageTwoObjective()
    total, parts = objective(network(torch.randn(2, 3, 64, 64)), torch.zeros(2, 64, 64).long())
    total.backward()
    assert torch.isfinite(total) and all(torch.isfinite(part) for part in parts.values())
    norm = torch.nn.utils.get_total_norm(
        [p.grad for p in network.parameters() if p.grad is not None]
    )
    assert torch.isfinite(norm)
