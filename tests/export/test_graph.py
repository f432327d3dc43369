"""The graph: standard operators, a dynamic batch, and the network's own answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from export import graph as G
from export.layers import infer_with, session_of
from export.older_opset import lowered
from export.precision import typed
from export.raw_frames import with_frames
from medisseg.convention import InputConvention
from medisseg.errors import UserError
from medisseg.model.create import create_model
from medisseg.model.inference import for_inference
from medisseg.model.loading import load_checkpoint

SIZE = (64, 96)


def images(count: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 3, *size)).astype(np.float32)


@pytest.mark.parametrize("count", [1, 3])
def test_graph_answers_as_the_network(graph: onnx.ModelProto, checkpoint: Path, count: int) -> None:
    batch = images(count)
    wanted = load_checkpoint(checkpoint)(torch.from_numpy(batch)).detach().numpy()
    assert wanted.std() > 0.3, "a flat network proves nothing"
    np.testing.assert_allclose(infer_with(graph)(batch), wanted, atol=2e-4)


def test_telu_is_four_pointwise_operators(graph: onnx.ModelProto) -> None:
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds.count("Min") == kinds.count("Exp") == kinds.count("Tanh") > 0
    assert "Clip" not in kinds or kinds.count("Clip") != kinds.count("Exp")


def test_no_path_of_this_machine_is_in_the_graph(graph: onnx.ModelProto) -> None:
    text = graph.SerializeToString()
    assert b"/site-packages/" not in text and b"medisseg/model" not in text


def test_whole_network_is_exported_with_a_dynamic_batch(whole_checkpoint: Path) -> None:
    model = load_checkpoint(whole_checkpoint)
    whole = G.export_graph(for_inference(model, uncertainty=True), SIZE, ("logits", "uncertainty"))
    assert not {node.op_type for node in whole.graph.node} & set(G.REFUSED)
    session = session_of(whole)
    batch = images(3)
    logits, uncertainty = session.run(None, {"images": batch})
    wanted = model(torch.from_numpy(batch)).detach().numpy()
    np.testing.assert_allclose(logits, wanted, atol=1e-3 * np.abs(wanted).max())
    maps = model.auxiliary_logits(torch.from_numpy(batch))["uncertainty"].detach().numpy()
    np.testing.assert_allclose(uncertainty, maps, atol=1e-3 * np.abs(maps).max())
    alone = session.run(None, {"images": batch[2:]})[0]
    np.testing.assert_allclose(alone, logits[2:], atol=1e-4 * np.abs(wanted).max())


class Folded(nn.Module):
    """The straightforward form of window mixing: it exports as Col2Im."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        windows = F.unfold(x, 3, padding=1)
        return F.fold(windows, x.shape[-2:], 3, padding=1).mean(1, keepdim=True)


@pytest.mark.parametrize("name", ["unet", "attention-unet", "dynunet", "unet-r50"])
def test_batch_norm_of_other_networks_is_folded(name: str) -> None:
    torch.manual_seed(0)
    network = create_model(name).eval()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            for values in (part.running_var, part.weight.data):
                values.uniform_(0.5, 2)
            for values in (part.running_mean, part.bias.data):
                values.normal_()
    exported = G.export_graph(for_inference(network), SIZE)
    batch = images(2)
    with torch.inference_mode():
        wanted = network(torch.from_numpy(batch)).numpy()
    difference = np.abs(infer_with(exported)(batch) - wanted).max()
    assert difference < 1e-3 * wanted.std()


def test_col2im_is_refused() -> None:
    with pytest.raises(UserError, match="Col2Im"):
        G.export_graph(Folded(), SIZE)


class Fixed(nn.Module):
    """A network that adds something per image of the traced batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1, keepdim=True) + torch.arange(x.shape[0]).reshape(-1, 1, 1, 1) / 9


def test_fixed_batch_is_refused() -> None:
    with pytest.raises(UserError, match="batch is fixed"):
        G.export_graph(Fixed(), SIZE)


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_frames_in_the_graph_are_the_convention(
    graph: onnx.ModelProto, resize: str, color: str
) -> None:
    convention = InputConvention(size=SIZE, resize=resize)
    frame = np.random.default_rng(2).integers(0, 255, (50, 100, 3), np.uint8)
    whole = with_frames(graph, convention, (50, 100), color, 0.3)
    given = frame[..., ::-1] if color == "BGR" else frame
    mask, logits = session_of(whole).run(None, {"frames": given[None]})
    wanted = infer_with(graph)(convention.preprocess(frame)[None])
    np.testing.assert_allclose(logits, wanted, atol=5e-3)
    full = convention.restore(wanted[0], (50, 100))[0]
    sure = np.abs(full - np.log(0.3 / 0.7)) > 0.02
    assert 0.02 < mask.mean() < 0.98
    np.testing.assert_array_equal(mask[0][sure], (full > np.log(0.3 / 0.7))[sure])


def test_polygraphy_reads_and_compares(graph: onnx.ModelProto, tmp_path: Path) -> None:
    from export.precision import typed

    for name, model in (("a", graph), ("b", typed(graph, "fp16"))):
        onnx.save(model, tmp_path / f"{name}.onnx")
    tool = [str(Path(sys.executable).with_name("polygraphy"))]

    def polygraphy(*words: str) -> str:
        done = subprocess.run([*tool, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    shown = polygraphy("inspect", "model", "a.onnx", "--show", "layers")
    assert "ONNX Model" in shown and "nsupported" not in shown
    shape = f"images:[2,3,{SIZE[0]},{SIZE[1]}]"
    polygraphy("run", "a.onnx", "--onnxrt", "--input-shapes", shape, "--save-outputs", "a.json",
               "--save-inputs", "in.json")  # fmt: skip
    out = polygraphy("run", "b.onnx", "--onnxrt", "--load-inputs", "in.json",
                     "--load-outputs", "a.json", "--atol", "0.05", "--rtol", "0.01")  # fmt: skip
    assert "nsupported" not in out


class Pair(nn.Module):
    """What stands at the end of a CDFA: a 1 x 1 convolution that a 3 x 3 reads."""

    def __init__(self, middle: int = 8, bias: bool = True, dilation: int = 1) -> None:
        super().__init__()
        self.project = nn.Conv2d(8, middle, 1, bias=bias)
        self.after = nn.Conv2d(middle, 8, 3, padding=dilation, dilation=dilation, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = F.pad(x, (0, 0, 0, 0, 0, 5)).exp()
        answer: torch.Tensor = self.after(self.project(first)).tanh()
        return answer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dilation", [1, 3])
def test_projection_is_merged_into_the_convolution_that_reads_it(bias: bool, dilation: int) -> None:
    torch.manual_seed(0)
    network = Pair(bias=bias, dilation=dilation)
    merged = G.export_graph(network, SIZE)
    kinds = [node.op_type for node in merged.graph.node]
    assert kinds.count("Conv") == 1 and kinds.count("Add") == bias
    batch = images(2)
    wanted = network(torch.from_numpy(batch)).detach().numpy()
    np.testing.assert_allclose(infer_with(merged)(batch), wanted, atol=1e-5)


def test_projection_that_saves_work_stays() -> None:
    """Through two channels a 3 x 3 of eight is cheaper than without them."""
    merged = G.export_graph(Pair(middle=2), SIZE)
    assert [node.op_type for node in merged.graph.node].count("Conv") == 2


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
def test_graph_in_the_operators_of_tensorrt_8_answers_the_same(
    graph: onnx.ModelProto, kind: str
) -> None:
    model = graph if kind == "fp32" else typed(graph, "fp16", ())
    before = model.SerializeToString()
    older = lowered(model)
    assert (older.opset_import[0].version, older.ir_version) == (17, 8)
    assert model.SerializeToString() == before
    onnx.checker.check_model(older, full_check=True)
    batch = images(2)
    np.testing.assert_array_equal(infer_with(older)(batch), infer_with(model)(batch))


def test_what_tensorrt_8_has_no_operator_for_is_said(graph: onnx.ModelProto) -> None:
    newer = onnx.ModelProto.FromString(graph.SerializeToString())
    newer.opset_import[0].version, newer.ir_version = 22, 10
    with pytest.raises(UserError, match=r"no form in opset 17.*bfloat16.*--precision fp16"):
        lowered(typed(newer, "bf16", ()))


def test_graph_carries_the_oldest_ir_version_of_its_operators(graph: onnx.ModelProto) -> None:
    """A parser refuses an IR version that it does not know, whatever the operators are."""
    (opset,) = graph.opset_import
    assert (opset.version, graph.ir_version) == (20, 9)
