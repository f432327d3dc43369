"""Graphed training answers and learns as eager training does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from medisseg import create_model
from medisseg.config import HardwareConfig, TrainConfig
from medisseg.errors import UserError
from medisseg.losses.objective import StageOneObjective, StageTwoObjective
from medisseg.training.graphs import GraphedNetwork
from medisseg.training.run import device


def learn(stage: int, graphed: bool, where: str) -> tuple[torch.nn.Module, list[float]]:
    """Take three steps at two sizes; return the network and its losses."""
    torch.manual_seed(0)
    network = create_model("edge", stage=stage).to(where).train()
    graphs = GraphedNetwork(network, torch.float32)
    objective = StageOneObjective() if stage == 1 else StageTwoObjective()
    optimizer = torch.optim.SGD(network.parameters(), 1e-3)
    losses = []
    for step, side in enumerate((64, 96, 64)):
        torch.manual_seed(step)
        views = [torch.randn(4, 3, side, side).to(where) for _ in range(3 - stage)]
        target = (views[0].mean(1) > 0.3).long()
        outputs = graphs(*views) if graphed else [network(view) for view in views]
        total, _ = objective(*outputs, target)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    return network, losses


def same(stage: int, where: str, tolerance: float) -> None:
    (eager, wanted), (ours, given) = (learn(stage, graphed, where) for graphed in (False, True))
    assert given == pytest.approx(wanted, abs=tolerance)
    for name, value in eager.state_dict().items():
        apart = (ours.state_dict()[name].float() - value.float()).abs().max()
        assert apart <= tolerance * max(1.0, float(value.float().abs().max())), name


@pytest.mark.parametrize("stage", [1, 2])
def test_views_go_through_as_tensors(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a capture that only runs the network, as a capture does, and counts."""
    captured = []

    def capture(network: torch.nn.Module, views: Any, allow_unused_input: bool) -> Any:
        network(*views)
        captured.append([tuple(view.shape) for view in views])
        return network

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    same(stage, "cpu", 1e-6)
    assert captured == [[(4, 3, side, side)] * (3 - stage) for side in (64, 96)]


@pytest.mark.gpu
@pytest.mark.parametrize("stage", [1, 2])
def test_on_a_gpu(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    same(stage, "cuda", 5e-3)


def test_refused_where_it_cannot_run(tmp_path: Path) -> None:
    hardware = HardwareConfig(device="cpu", cuda_graph=True)
    with pytest.raises(UserError, match="cuda_graph needs one GPU"):
        device(TrainConfig(hardware=hardware))
    with pytest.raises(ValueError, match="choose one"):
        HardwareConfig(compile=True, cuda_graph=True)
