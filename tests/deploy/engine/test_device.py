"""Frames on the engine's GPU: the same results as on the CPU, or the CPU."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from deploy.engine import device as device_module
from deploy.engine.device import CpuProcessor, GpuProcessor, choose
from deploy.engine.supervisor import EngineSupervisor
from medisseg.convention import InputConvention

WORDS = ("--hold-off", 0, "--record", "none")


def chosen(supervisor: EngineSupervisor) -> type[CpuProcessor]:
    return type(choose(supervisor.convention, supervisor.device, supervisor.classes))


def lines(run: Any) -> list[dict[str, Any]]:
    kept = ("id", "area", "boxes", "confidence", "rle", "shown_rle", "off")
    return [{key: line[key] for key in kept} for line in run.processed()]


@pytest.mark.gpu
def test_a_run_on_a_gpu_finds_what_one_on_the_cpu_finds(
    play: Any, numbered: Path, tmp_path: Path
) -> None:
    from export.runtime import load_engine
    from medisseg import create_model
    from medisseg.checkpoint import save_checkpoint

    path = tmp_path / "edge.safetensors"
    save_checkpoint(path, create_model("edge"))
    opened = {
        where: lambda where=where: load_engine(path, device=where, precision="fp32")
        for where in ("cuda", "cpu")
    }
    with contextlib.closing(EngineSupervisor(opened["cuda"])) as supervisor:
        assert chosen(supervisor) is GpuProcessor
    runs = [lines(play(numbered, *WORDS, engine=opened[where])) for where in ("cuda", "cpu")]
    for one, other in zip(*runs, strict=True):
        assert one["area"] == pytest.approx(other["area"], rel=0.02, abs=50)


class Tensors(InputConvention):
    """Gives tensors, as the frame extension does for memory of a GPU."""

    def preprocess(self, image: Any) -> Any:
        return torch.from_numpy(super().preprocess(np.asarray(image)))


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A GPU that is the CPU: no streams; returns which of the way's parts were taken."""
    taken: list[str] = []
    nothing = SimpleNamespace(synchronize=lambda: taken.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: nothing)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: nothing)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())

    class Pretended(GpuProcessor):
        def __init__(self, convention: InputConvention, device: Any) -> None:
            taken.append(str(device))
            super().__init__(Tensors(**convention.to_dict()), "cpu")

    monkeypatch.setattr(device_module, "GpuProcessor", Pretended)
    return taken


def tensor_engine(fake: Any) -> Any:
    """A fake engine on a pretended GPU."""

    class TensorEngine(fake.FakeEngine):
        device = "cuda:0"

        def infer(self, batch: Any) -> Any:
            if isinstance(batch, np.ndarray):
                return super().infer(batch)
            return torch.from_numpy(super().infer(batch.numpy()))

    return TensorEngine()


def test_the_whole_way_as_tensors(
    play: Any, fake: Any, numbered: Path, pretended: list[str]
) -> None:
    there = lines(play(numbered, numbered, *WORDS, engine=lambda: tensor_engine(fake)))
    assert pretended[0] == "cuda:0" and pretended.count("synchronize") > 200
    here = lines(play(numbered, numbered, *WORDS))
    assert len(here) == 100 and here == there


@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_a_way_that_differs_is_not_taken(
    fake: Any, pretended: list[str], monkeypatch: pytest.MonkeyPatch, color: str, caplog: Any
) -> None:
    supervisor = EngineSupervisor(lambda: tensor_engine(fake))
    supervisor.convention = InputConvention(color=color, size=(128, 128))
    assert chosen(supervisor) is device_module.GpuProcessor
    honest = Tensors.preprocess
    monkeypatch.setattr(Tensors, "preprocess", lambda self, image: honest(self, image).flip(0))
    with caplog.at_level(logging.WARNING):
        assert chosen(supervisor) is CpuProcessor
    assert "prepares a frame otherwise, by" in caplog.text
    monkeypatch.setattr(Tensors, "preprocess", honest)
    monkeypatch.setattr(
        device_module.GpuProcessor,
        "finish",
        lambda self, logits, *rest: CpuProcessor.finish(self, -logits, *rest),
    )
    with caplog.at_level(logging.WARNING):
        assert chosen(supervisor) is CpuProcessor
    assert "makes another mask" in caplog.text
    supervisor.close()


def test_without_cuda_the_cpu_does_it(fake: Any, caplog: pytest.LogCaptureFixture) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    supervisor = EngineSupervisor(lambda: tensor_engine(fake))
    assert chosen(supervisor) is CpuProcessor and "frames stay on the CPU" in caplog.text
    supervisor.close()
