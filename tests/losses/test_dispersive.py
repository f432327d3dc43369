"""The dispersive term has a gradient on real features, everywhere; the published has none."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from medisseg.convention import InputConvention
from medisseg.losses.dispersive import (
    GRANULARITIES,
    PLACEMENTS,
    VARIANTS,
    DispersiveOptions,
    DispersiveTerm,
    representations,
)
from medisseg.model.create import create_model


@pytest.fixture(scope="module")
def images(polyps: Path) -> Tensor:
    """Four real images as the network wants them, [4, 3, 128, 128]."""
    convention = InputConvention()
    mean, std = (np.array(v, np.float32) for v in (convention.mean, convention.std))
    files = sorted((polyps / "images").iterdir())[:4]
    pixels = [
        np.asarray(Image.open(f).convert("RGB").resize((128, 128)), np.float32) for f in files
    ]
    arrays = np.stack([((p / 255 - mean) / std).transpose(2, 0, 1) for p in pixels])
    return torch.from_numpy(np.ascontiguousarray(arrays, np.float32))


@pytest.fixture(scope="module")
def features(images: Tensor) -> dict[str, Tensor]:
    """The features of the edge network on real images, at every placement."""
    torch.manual_seed(2)
    model = create_model("edge", stage=2, encoder_weights="imagenet").train()
    with torch.no_grad():
        return model(images).features


def published_infonce(rows: Tensor, tau: float) -> Tensor:
    """The release's form: squared distances of flattened features, exp, mean, then log."""
    distance = (rows[:, None] - rows[None]).square().sum(2)
    off = ~torch.eye(len(rows), dtype=torch.bool)
    return torch.log(torch.exp(-distance[off] / tau).mean() + 1e-8)


def published_hinge(rows: Tensor, margin: float) -> Tensor:
    distance = torch.pdist(rows)
    return (margin - distance).clamp(min=0).square().mean()


@pytest.mark.parametrize("placement", PLACEMENTS[:3])
def test_the_published_form_is_dead_and_ours_is_alive(
    placement: str, features: dict[str, Tensor]
) -> None:
    leaf = features[placement].clone().requires_grad_()
    for loss in (published_infonce(leaf.flatten(1), 0.8), published_hinge(leaf.flatten(1), 1.0)):
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert torch.count_nonzero(gradient) == 0
    assert published_infonce(leaf.flatten(1), 0.8).item() == pytest.approx(math.log(1e-8))
    term = DispersiveTerm(DispersiveOptions(placement=placement))
    (gradient,) = torch.autograd.grad(term({placement: leaf}), leaf)
    assert gradient.isfinite().all() and gradient.abs().max() > 0


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_choice_is_finite_with_a_gradient(
    variant: str, placement: str, granularity: str, features: dict[str, Tensor]
) -> None:
    leaves = {k: v[..., :8, :8].clone().requires_grad_() for k, v in features.items()}
    options = DispersiveOptions(variant, placement, granularity, margin=20.0)
    loss = DispersiveTerm(options)(leaves)
    loss.backward()
    assert loss.isfinite() and loss.ndim == 0
    for name in PLACEMENTS[:3] if placement == "all" else [placement]:
        gradient = leaves[name].grad
        assert gradient.isfinite().all() and gradient.abs().max() > 0


def test_all_is_the_mean_of_the_three(features: dict[str, Tensor]) -> None:
    small = {name: value[..., :4, :4] for name, value in features.items()}
    each = [DispersiveTerm(DispersiveOptions(placement=p))(small) for p in PLACEMENTS[:3]]
    together = DispersiveTerm(DispersiveOptions(placement="all"))(small)
    torch.testing.assert_close(together, torch.stack(each).mean())


def test_infonce_is_the_log_mean_exp_of_distances_per_dimension() -> None:
    torch.manual_seed(1)
    maps = torch.randn(5, 3, 2, 2)
    rows = maps.flatten(1).double()
    pairs = [(rows[i] - rows[j]).square().mean() for i in range(5) for j in range(i)]
    expected = math.log(sum(math.exp(-d / 0.5) for d in pairs) / 10 + 1e-8)
    loss = DispersiveTerm(DispersiveOptions(tau=0.5))({"early": maps})
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_representations_are_images_or_positions() -> None:
    maps = torch.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    assert torch.equal(representations(maps, "image")[1], maps[1].flatten())
    pixels = representations(maps, "pixel")
    assert pixels.shape == (8, 3) and torch.equal(pixels[5], maps[1, :, 0, 1])


def test_one_image_has_no_pairs_and_no_term() -> None:
    feature = torch.randn(1, 4, 2, 2, requires_grad=True)
    loss = DispersiveTerm()({"early": feature})
    loss.backward()
    assert loss == 0 and torch.count_nonzero(feature.grad) == 0


def test_wrong_choices_are_refused() -> None:
    for wrong in ({"variant": "nce"}, {"placement": "f4"}, {"granularity": "patch"}, {"tau": 0.0}):
        with pytest.raises(ValueError, match="expected"):
            DispersiveOptions(**wrong)


def joint_rows() -> Tensor:
    return torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(6))


def one_rank(rank: int, world: int, port: int, folder: str) -> None:
    """A data-parallel step of one parameter: its averaged gradient is written to a file."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    layer = torch.nn.Conv2d(3, 3, 1)
    torch.nn.init.constant_(layer.weight, 0.3)
    parallel = torch.nn.parallel.DistributedDataParallel(layer)
    share = joint_rows()[2 * rank : 2 * rank + 2]
    loss = DispersiveTerm()({"early": parallel(share)})
    loss.backward()
    torch.save((loss.detach(), layer.weight.grad), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_gradient_of_the_joint_batch(tmp_path: Path) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), "2", str(port), str(tmp_path)])
        for rank in range(2)
    ]
    assert [process.wait(120) for process in ranks] == [0, 0]
    layer = torch.nn.Conv2d(3, 3, 1)
    torch.nn.init.constant_(layer.weight, 0.3)
    loss = DispersiveTerm()({"early": layer(joint_rows())})
    loss.backward()
    for rank in range(2):
        shared_loss, gradient = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(shared_loss, loss.detach(), msg="loss")
        torch.testing.assert_close(gradient, layer.weight.grad)


if __name__ == "__main__":
    one_rank(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
