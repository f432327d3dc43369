"""Engines: one protocol, the same answers, honest names, refusals that say what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.bundle import Bundle
from export.runtime import Engine, load_engine
from export.runtime import opening as T
from medisseg.errors import UserError
from medisseg.model.inference import for_inference
from medisseg.model.loading import load_checkpoint

BACKENDS = [("onnx", "auto", 2e-4), ("openvino", "fp32", 2e-3), ("openvino", "auto", 0.3)]


def images(count: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(count, 3, 64, 96)).astype(np.float32)


@pytest.mark.parametrize(("backend", "precision", "tolerance"), BACKENDS)
def test_bundle_answers_as_the_network(
    bundle: Bundle, checkpoint: Path, backend: str, precision: str, tolerance: float
) -> None:
    batch = images(6)
    wanted = load_checkpoint(checkpoint)(torch.from_numpy(batch)).detach().numpy()
    with load_engine(bundle.path, backend=backend, precision=precision, threads=1) as engine:
        assert isinstance(engine, Engine)
        assert engine.backend == backend and engine.max_batch == 4 and engine.classes == 1
        given = engine.infer(batch)  # longer than max_batch: in parts
        kept = given.copy()
        engine.infer(batch[::-1].copy())
    assert given.dtype == np.float32 and given.shape == wanted.shape
    np.testing.assert_allclose(given, wanted, atol=tolerance)
    np.testing.assert_array_equal(given, kept, "an answer must survive the next run")
    with pytest.raises(RuntimeError, match="closed"):
        engine.infer(batch)


def test_openvino_computes_telu_without_tanh(graph: onnx.ModelProto) -> None:
    """Within its rounding; a tanh of anything but an exponential stays."""
    import openvino

    from export.runtime.openvino_engine import exponential_tanh

    core = openvino.Core()
    plain, changed = (core.read_model(graph.SerializeToString(), b"") for _ in range(2))
    count = sum(node.op_type == "Tanh" for node in graph.graph.node)
    assert exponential_tanh(changed) == count > 0
    assert "Tanh" not in {node.get_type_name() for node in changed.get_ops()}
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    wanted, given = (core.compile_model(m, "CPU", exact)([images(2)])[0] for m in (plain, changed))
    np.testing.assert_allclose(given, wanted, atol=2e-4)
    values = openvino.opset13.parameter([4], np.float32)
    alone = openvino.Model([openvino.opset13.tanh(values)], [values])
    assert exponential_tanh(alone) == 0


@pytest.mark.parametrize(("precision", "rewritten"), [("fp32", 1), ("auto", None)])
def test_openvino_engines_in_float32_are_rewritten(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, precision: str, rewritten: int | None
) -> None:
    """Not those in bfloat16, whose rounding the difference from 1 would not bear."""
    from export.runtime import openvino_engine

    calls: list[object] = []
    monkeypatch.setattr(openvino_engine, "exponential_tanh", calls.append)
    with load_engine(bundle.path, backend="openvino", precision=precision, threads=1) as engine:
        expected = int("fp32" in engine.name) if rewritten is None else rewritten
    assert len(calls) == expected


@pytest.mark.parametrize("low", [-20, -3])
def test_telu_by_exponentials_is_telu_to_a_millionth(low: int) -> None:
    import openvino

    from export.runtime.openvino_engine import exponential_tanh

    op = openvino.opset13
    x = np.linspace(low, 8, 4001, dtype=np.float32)
    values = op.parameter([len(x)], np.float32)
    held = op.exp(op.minimum(values, op.constant(np.float32(4))))
    network = openvino.Model([op.multiply(values, op.tanh(held))], [values])
    assert exponential_tanh(network) == 1
    given = openvino.Core().compile_model(network, "CPU")([x])[0]
    wide = x.astype(np.float64)
    np.testing.assert_allclose(given, wide * np.tanh(np.exp(wide)), rtol=0, atol=2e-6)


def test_each_place_in_a_batch_gives_the_same(bundle: Bundle) -> None:
    one = images(1)
    with load_engine(bundle.path, backend="openvino", precision="fp32") as engine:
        answers = engine.infer(np.repeat(one, 4, axis=0))
    for answer in answers[1:]:
        np.testing.assert_allclose(answer, answers[0], atol=1e-5)


def test_checkpoint_runs_in_pytorch(checkpoint: Path) -> None:
    batch = images(2)
    wanted = load_checkpoint(checkpoint)(torch.from_numpy(batch)).detach().numpy()
    before = torch.get_num_threads()
    with load_engine(checkpoint, device="cpu", threads=1) as engine:
        given = engine.infer(batch)
        assert engine.backend == "pytorch" and "fp32 on CPU" in engine.name
    assert torch.get_num_threads() == before
    np.testing.assert_allclose(given, wanted, atol=2e-4)


def test_bf16_checkpoint_is_named_so(checkpoint: Path) -> None:
    with load_engine(checkpoint, device="cpu", precision="bf16") as engine:
        assert "bf16" in engine.name
        exact = load_checkpoint(checkpoint)(torch.from_numpy(images(1))).detach().numpy()
        error = np.abs(engine.infer(images(1)) - exact).max()
    assert 1e-4 < error < 0.5


def test_dlpack_goes_in_without_a_copy_to_numpy(checkpoint: Path) -> None:
    from export.runtime.torch_engine import TorchEngine

    engine = load_engine(checkpoint, device="cpu")
    assert isinstance(engine, TorchEngine)
    batch = images(1)
    answer = engine.run_on_device(batch)["logits"]  # numpy has __dlpack__
    np.testing.assert_allclose(answer.numpy(), engine.infer(batch), atol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 3, 64, 64), np.float32),
        np.zeros((1, 3, 64, 96), np.float64),
        np.zeros((3, 64, 96), np.float32),
        np.zeros((0, 3, 64, 96), np.float32),
    ],
)
def test_wrong_batches_are_refused(bundle: Bundle, wrong: np.ndarray) -> None:
    with load_engine(bundle.path) as engine, pytest.raises(ValueError, match="expected"):
        engine.infer(wrong)


def test_wrong_requests_are_refused(bundle: Bundle, checkpoint: Path) -> None:
    cases = [
        (bundle.path, {"backend": "caffe"}, "expected auto or one of"),
        (bundle.path, {"threads": 0}, "threads is 0"),
        (bundle.path, {"backend": "tensorrt"}, "--backend tensorrt"),
        (checkpoint, {"backend": "openvino"}, "build it first"),
        (checkpoint, {"device": "tpu"}, "device is 'tpu'"),
        (checkpoint.with_name("none.safetensors"), {}, "does not exist"),
    ]
    if not torch.cuda.is_available():
        cases.append((checkpoint, {"device": "cuda"}, "no NVIDIA GPU"))
    for source, options, said in cases:
        with pytest.raises(UserError, match=said):
            load_engine(source, **options)


def test_pickled_checkpoint_is_not_executed(tmp_path: Path) -> None:
    import pickle

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch '{tmp_path}/executed'",)

    for name in ("evil.safetensors", "evil.pth"):
        (tmp_path / name).write_bytes(pickle.dumps({"state_dict": Payload()}))
        with pytest.raises(UserError):
            load_engine(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_trial_load_runs_in_a_child(bundle: Bundle) -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "export.runtime.load_probe", str(bundle.path), "auto"]
    done = subprocess.run(command, cwd=root, env={**os.environ, T.PROBE: "1"}, timeout=120)
    assert done.returncode == 0


def test_crash_in_the_trial_load_is_an_error_and_not_a_crash(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    crash = tmp_path / "python"
    crash.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crash))
    with pytest.raises(UserError, match="signal 11.*build it again"):
        T.probe_load(bundle, "a GPU")
    assert not list(tmp_path.rglob("opened-*")), "a failed probe is not remembered"


def test_good_trial_load_is_remembered(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "/bin/true")
    T.probe_load(bundle, "a GPU")
    assert len(list(tmp_path.rglob("opened-*"))) == 1
    monkeypatch.setattr(sys, "executable", "/bin/false")
    T.probe_load(bundle, "a GPU")  # remembered: no child
    with pytest.raises(UserError, match="code 1"):
        T.probe_load(bundle, "another GPU")


def test_trial_load_that_hangs_is_an_error(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    with pytest.raises(UserError, match="no answer in 0.2 s.*build it again"):
        T.probe_load(bundle, "a GPU", seconds=0.2)


def test_trial_load_uses_the_device_that_was_asked_for(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    listing = tmp_path / "python"
    listing.write_text(f"#!/bin/sh\necho \"$@\" > '{tmp_path}/words'\n")
    listing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(listing))
    T.probe_load(bundle, "a GPU", "cuda:1")
    assert (tmp_path / "words").read_text().split()[-1] == "cuda:1"


def test_nothing_inside_a_cuda_graph_comes_from_the_host() -> None:
    """A copy from the host ends the capture; on the meta device it shows without a GPU."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from export.model_info import ModelInfo
    from export.runtime.torch_engine import TorchEngine
    from medisseg.convention import InputConvention
    from medisseg.model.create import create_model

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            given = [value for value in args if isinstance(value, torch.Tensor)]
            assert not any(value.device.type == "cpu" for value in given), func
            assert "local_scalar" not in str(func), "a value is read back"
            return func(*args, **(kwargs or {}))

    def forward(portable: bool) -> torch.Tensor:
        network = for_inference(create_model("edge"), portable=portable)
        engine = TorchEngine(network, ModelInfo(InputConvention()), "meta", "fp16")
        with Watch(), torch.inference_mode():
            return engine._forward(torch.empty(1, 3, 64, 96, device="meta"))["logits"]

    assert forward(portable=False).dtype == torch.float16
    with pytest.raises(AssertionError):
        forward(portable=True)  # the exporters' form has a constant on the host


@pytest.mark.gpu
def test_cuda_graph_answers_as_the_network(checkpoint: Path) -> None:
    wanted = load_checkpoint(checkpoint)(torch.from_numpy(images(3))).detach().numpy()
    for precision, tolerance in (("fp32", 5e-3), ("fp16", 0.1)):
        with load_engine(checkpoint, device="cuda", precision=precision) as engine:
            for count in (3, 1, 3):
                given = engine.infer(images(3)[:count])
                np.testing.assert_allclose(given, wanted[:count], atol=tolerance)


def test_a_graph_that_fails_prints_nothing_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    """A node's name with control codes reached the terminal through ONNX Runtime's own log."""
    from onnx import TensorProto, helper, numpy_helper

    from export.model_info import ModelInfo
    from export.runtime.onnx_engine import OnnxEngine
    from medisseg.convention import InputConvention

    four = numpy_helper.from_array(np.array([4], np.int64), "four")
    node = helper.make_node("Gather", ["image", "four"], ["logits"], "\x1b[2Jnode", axis=1)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, 32, 32])
        for name, channels in (("image", 3), ("logits", 1))
    ]
    graph = helper.make_graph([node], "graph", ends[:1], ends[1:], [four])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    info = ModelInfo(InputConvention(size=(32, 32)), 0.5, 1)
    engine = OnnxEngine(model.SerializeToString(), info, threads=1)
    with pytest.raises(Exception, match="out of data bounds"):
        engine.infer(np.zeros((1, 3, 32, 32), np.float32))
    assert capfd.readouterr() == ("", "")


def test_freezing_of_a_compiled_engine_answers_the_same() -> None:
    """Inductor's freezing reaches the compiler, and the weights that it folds are the network's."""
    from unittest import mock

    from torch._inductor import freezing

    from export.model_info import ModelInfo
    from export.runtime.torch_engine import FREEZING, TorchEngine
    from medisseg.convention import InputConvention
    from medisseg.model.blocks import CBT

    torch.manual_seed(0)
    network = torch.nn.Sequential(CBT(3, 4), torch.nn.Conv2d(4, 1, 1)).eval().requires_grad_(False)
    batch = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
    wanted = network(torch.from_numpy(batch)).numpy()
    model_info = ModelInfo(InputConvention(size=(16, 16)))
    engine = TorchEngine(network, model_info, "cpu", "fp32", compiled=True, inductor=FREEZING)
    with mock.patch.object(freezing, "freeze", wraps=freezing.freeze) as frozen:
        np.testing.assert_allclose(engine.infer(batch), wanted, atol=1e-5)
    assert frozen.call_count == 1
    torch.compiler.reset()
