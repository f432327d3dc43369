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

import kernels.dispersive
from medisseg.convention import InputConvention
from medisseg.losses import GRANULARITIES, PLACEMENTS, VARIANTS
from medisseg.losses.dispersive import DispersiveOptions, DispersiveTerm, representations
from medisseg.losses.published import PublishedDispersiveTerm
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
    """The release's form: distances of flattened features, exp, mean, then log."""
    distance = (rows[:, None] - rows[None]).square().sum(2).sqrt()
    off = ~torch.eye(len(rows), dtype=torch.bool)
    return torch.log(torch.exp(-distance[off] / tau).mean() + 1e-8)


def published_hinge(rows: Tensor, margin: float) -> Tensor:
    distance = torch.pdist(rows)
    return (margin - distance).clamp(min=0).square().mean()


def test_the_published_form_is_dead_where_it_is_placed(features: dict[str, Tensor]) -> None:
    leaf = features["early"].clone().requires_grad_()
    released = PublishedDispersiveTerm(0.8)({"early": leaf})
    torch.testing.assert_close(released, published_infonce(leaf.flatten(1).detach(), 0.8))
    assert released.item() == pytest.approx(math.log(1e-8))
    for loss in (released, published_hinge(leaf.flatten(1), 1.0)):
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert torch.count_nonzero(gradient) == 0


def test_the_variants_are_those_of_the_operator() -> None:
    assert kernels.dispersive.VARIANTS == VARIANTS


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_choice_is_finite_with_a_gradient(
    variant: str, placement: str, granularity: str, features: dict[str, Tensor]
) -> None:
    leaves = {k: v[..., :8, :8].clone().requires_grad_() for k, v in features.items()}
    options = DispersiveOptions(variant, placement, granularity)
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


def test_infonce_is_the_log_mean_exp_of_the_pairs_distances() -> None:
    """Of unit representations, or of features as they are, per dimension."""
    torch.manual_seed(1)
    maps = torch.randn(5, 3, 2, 2)
    raw = maps.flatten(1).double()
    unit = raw / raw.norm(dim=1, keepdim=True)
    for normalize, rows, dimensions in (("unit", unit, 1), ("none", raw, 12)):
        pairs = [(rows[i] - rows[j]).square().sum() for i in range(5) for j in range(i)]
        exponentials = [math.exp(-d / dimensions / 0.5) for d in pairs]
        expected = math.log(sum(exponentials) / 10 + 1e-3)
        options = DispersiveOptions(tau=0.5, normalize=normalize, epsilon=1e-3)
        loss = DispersiveTerm(options)({"early": maps})
        assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_term_does_not_depend_on_the_scale_of_features(variant: str, granularity: str) -> None:
    """Value, and gradient by relative change: what makes lambda and tau carry over to encoders."""
    torch.manual_seed(3)
    feature = torch.rand(4, 6, 3, 3)
    found = []
    for scale in (0.01, 1.0, 300.0):
        leaf = (feature * scale).requires_grad_()
        loss = DispersiveTerm(DispersiveOptions(variant, granularity=granularity))({"early": leaf})
        (gradient,) = torch.autograd.grad(loss, leaf)
        found.append((loss.detach(), gradient * scale))
    for value, gradient in found:
        torch.testing.assert_close(value, found[1][0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(gradient, found[1][1], rtol=1e-3, atol=1e-6)
        assert gradient.abs().max() > 0


def test_the_margin_is_what_the_hinge_pushes_under() -> None:
    rows = torch.eye(3).view(3, 3, 1, 1) * 7  # unit vectors sqrt(2) apart, whatever their length
    for margin, expected in ((1.0, 0.0), (2.0, (2 - math.sqrt(2)) ** 2)):
        term = DispersiveTerm(DispersiveOptions("hinge", margin=margin))
        assert term({"early": rows}).item() == pytest.approx(expected, abs=1e-6)


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
    for wrong in (
        {"variant": "nce"},
        {"placement": "f4"},
        {"granularity": "patch"},
        {"tau": 0.0},
        {"margin": -1.0},
        {"normalize": "std"},
        {"epsilon": 1.0},
    ):
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
    torch.nn.init.constant_(layer.bias, 0.1)
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
    torch.nn.init.constant_(layer.bias, 0.1)
    loss = DispersiveTerm()({"early": layer(joint_rows())})
    loss.backward()
    for rank in range(2):
        shared_loss, gradient = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(shared_loss, loss.detach(), msg="loss")
        torch.testing.assert_close(gradient, layer.weight.grad)


if __name__ == "__main__":
    one_rank(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
