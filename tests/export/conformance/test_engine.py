"""The whole of TensorRT's engine over a runtime with the real signatures and TensorRT's rules."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda import Cuda, Graph, Stream, Torch
from fake_trt import Broken, plan
from libraries import JETPACK_6, LAST_8, LAST_10, LAST_11
from torch.utils._python_dispatch import TorchDispatchMode

from export.model_info import ModelInfo
from export.runtime.tensorrt_batch import batch_sizes
from export.runtime.tensorrt_engine import TensorRTEngine
from medisseg.convention import InputConvention
from medisseg.errors import UserError

SIZE = (64, 96)
VERSIONS = [LAST_8, JETPACK_6, LAST_10, LAST_11, "rtx"]


def model_info(batch: int = 4, **more: Any) -> ModelInfo:
    return ModelInfo(InputConvention(size=SIZE), max_batch=batch, **more)


def module_of(version: str) -> str:
    return "tensorrt_rtx" if version == "rtx" else "tensorrt"


def images(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(count, 3, *SIZE)).astype(np.float32)


def expected(batch: Any) -> Any:
    return batch.mean(1, keepdims=True) + 1


@pytest.mark.parametrize("version", VERSIONS)
def test_every_batch_size_answers_for_its_own_images(fake: Any, version: str) -> None:
    cuda, trt = fake(version)
    content = plan(outputs=["uncertainty"])
    with TensorRTEngine(module_of(version), content, model_info(uncertainty=True)) as engine:
        assert "GPU A" in engine.name
        for count in (1, 4, 2, 3, 1, 9):
            batch = images(count, count)
            answers = engine.outputs(batch)
            np.testing.assert_allclose(answers["logits"], expected(batch), atol=1e-6)
            np.testing.assert_allclose(answers["uncertainty"], -expected(batch), atol=1e-6)
        kept = engine.infer(images(1, 1))
        engine.infer(images(1, 2))
        np.testing.assert_allclose(kept, expected(images(1, 1)), atol=1e-6)  # the caller's own
    assert trt._world.contexts and len(trt._world.contexts) == 4
    with pytest.raises(RuntimeError, match="closed"):
        engine.infer(images(1))


def test_every_batch_size_is_captured_when_the_engine_opens(fake: Any) -> None:
    """A capture beside a live stream is broken by another thread's allocation (mode "global")."""
    cuda, _ = fake(LAST_11)
    engine = TensorRTEngine("tensorrt", plan(), model_info())
    assert cuda.capture_modes == ["thread_local"] * 4
    before = len(cuda.capture_modes)
    for count in (1, 2, 3, 4):
        engine.infer(images(count))
    assert len(cuda.capture_modes) == before, "captured while frames were waiting"
    assert all(batch._graph is not None for batch in engine._batches.values())


def test_contexts_share_one_scratch_memory(fake: Any) -> None:
    cuda, trt = fake(LAST_11)
    TensorRTEngine("tensorrt", plan(scratch=1 << 20), model_info())
    assert len({context._memory for context in trt._world.contexts}) == 1
    assert cuda.allocated < 2 << 20


@pytest.mark.parametrize("version", [LAST_11, "rtx"])
def test_second_gpu_is_used_throughout(fake: Any, version: str) -> None:
    """The fake refuses contexts, addresses and streams of another device than the engine's."""
    cuda, _ = fake(version)
    engine = TensorRTEngine(module_of(version), plan(), model_info(), device="cuda:1")
    assert "GPU B" in engine.name and cuda.device_now == 0
    np.testing.assert_allclose(engine.infer(images(3)), expected(images(3)), atol=1e-6)
    given = cuda.new(torch.from_numpy(images(2, 5)), 1)
    answer = engine.run_on_device(given)["logits"]
    with cuda.device(1):
        cuda.current_stream().synchronize()
    np.testing.assert_allclose(answer.numpy(), expected(images(2, 5)), atol=1e-6)


def test_answers_on_the_device_follow_the_callers_stream(fake: Any) -> None:
    cuda, _ = fake(LAST_11)
    engine = TensorRTEngine("tensorrt", plan(), model_info())
    streams = [cuda.Stream(0) for _ in range(3)]
    kept = []
    for seed, stream in enumerate(streams):
        with cuda.stream(stream):
            given = cuda.new(torch.zeros(2, 3, *SIZE), 0)
            given.copy_(torch.from_numpy(images(2, seed)), non_blocking=True)
            answer = engine.run_on_device(given)["logits"]
            out = cuda.new(torch.zeros(2, 1, *SIZE), 0)
            out.copy_(answer, non_blocking=True)
            kept.append(out)
        stream.synchronize()
    for seed, out in enumerate(kept):
        np.testing.assert_allclose(out.numpy(), expected(images(2, seed)), atol=1e-6)


@pytest.mark.parametrize("refusal", ["capture", "enqueue"])
def test_refused_capture_runs_without_a_graph(
    fake: Any, refusal: str, caplog: pytest.LogCaptureFixture
) -> None:
    cuda, _ = fake(LAST_11)
    cuda.refuse_enqueue = refusal == "enqueue"
    cuda.refuse_capture = RuntimeError("not permitted") if refusal == "capture" else None
    with (
        caplog.at_level(logging.WARNING),
        TensorRTEngine("tensorrt", plan(), model_info()) as engine,
    ):
        np.testing.assert_allclose(engine.infer(images(2)), expected(images(2)), atol=1e-6)
        assert all(batch._graph is None for batch in engine._batches.values())
    assert "no CUDA graph for 1 images" in caplog.text


@pytest.mark.parametrize("version", VERSIONS)
def test_fewer_images_than_the_smallest_batch_are_padded(fake: Any, version: str) -> None:
    fake(version)
    engine = TensorRTEngine(module_of(version), plan((2, 4, 6)), model_info(6))
    for count in (1, 7, 5):
        batch = images(count, count)
        np.testing.assert_allclose(engine.infer(batch), expected(batch), atol=1e-6)


def test_large_batches_share_graphs() -> None:
    assert batch_sizes(1, 4) == [1, 2, 3, 4]
    assert batch_sizes(1, 20) == [1, 2, 3, 4, 5, 6, 7, 8, 16, 20]
    assert batch_sizes(3, 3) == [3] and batch_sizes(10, 40) == [16, 32, 40]
    for low, high in ((1, 1), (1, 9), (12, 12), (5, 100)):
        sizes = batch_sizes(low, high)
        assert all(any(size >= n for size in sizes) for n in range(1, high + 1))
        assert min(sizes) >= low and max(sizes) == high


def test_compiled_kernels_are_kept_for_the_next_start(fake: Any, tmp_path: Path) -> None:
    _, trt = fake("rtx")
    cache = tmp_path / "cache" / "kernels"
    TensorRTEngine("tensorrt_rtx", plan(), model_info(), kernels=cache).close()
    assert trt._world.compiled == 4
    TensorRTEngine("tensorrt_rtx", plan(), model_info(), kernels=cache).close()
    assert trt._world.compiled == 4, "compiled again"
    cache.write_bytes(b"of another driver")
    TensorRTEngine("tensorrt_rtx", plan(), model_info(), kernels=cache).close()
    assert trt._world.compiled == 8 and cache.read_bytes().startswith(b"kernels:")


def test_kernel_cache_in_a_folder_that_cannot_be_written_is_no_error(
    fake: Any, tmp_path: Path
) -> None:
    fake("rtx")
    (tmp_path / "file").write_text("")
    with TensorRTEngine(
        "tensorrt_rtx", plan(), model_info(), kernels=tmp_path / "file" / "kernels"
    ) as engine:
        np.testing.assert_allclose(engine.infer(images(1)), expected(images(1)), atol=1e-6)


def test_what_a_plan_needs_is_given(fake: Any) -> None:
    fake(LAST_10)
    with pytest.raises(UserError, match="build it again"):
        TensorRTEngine("tensorrt", plan(dla=1), model_info())
    TensorRTEngine("tensorrt", plan(dla=1), model_info(), dla=1)
    TensorRTEngine("tensorrt", plan(host_code=True), model_info(), version_compatible=True)


def test_plans_that_cannot_be_opened_say_so(fake: Any) -> None:
    cuda, _ = fake(LAST_11)
    with pytest.raises(UserError, match="build it again"):
        TensorRTEngine("tensorrt", b"no plan", model_info())
    with pytest.raises(UserError, match="up to 2 images"):
        TensorRTEngine("tensorrt", plan((1, 1, 2)), model_info())
    cuda.no_driver = True
    with pytest.raises(UserError, match="no NVIDIA GPU and driver"):
        TensorRTEngine("tensorrt", plan(), model_info())


def test_the_fake_holds_to_the_rules(fake: Any, signatures: Callable[[str], Any]) -> None:
    """Were it lenient the tests above would show nothing."""
    cuda, trt = fake("rtx")
    runtime = trt.Runtime(trt.ILogger())
    engine = runtime.deserialize_cuda_engine(plan())
    with pytest.raises(TypeError, match="fits none"):
        engine.get_tensor_name("images")
    with pytest.raises(AttributeError, match="no enqueue_v2"):
        _ = engine.enqueue_v2
    with cuda.device(1), pytest.raises(Broken, match="device 1"):
        engine.create_execution_context()
    context = engine.create_execution_context(engine.create_runtime_config())
    assert not context.set_input_shape("images", (5, 3, *SIZE))
    assert context.set_input_shape("images", (1, 3, *SIZE))
    stream = cuda.Stream(0)
    assert not context.execute_async_v3(stream.cuda_stream), "no address was set"
    for name, channels in (("images", 3), ("logits", 1)):
        memory = cuda.new(torch.zeros(1, channels, *SIZE), 0)
        context.set_tensor_address(name, memory.data_ptr())
    with (
        pytest.raises(RuntimeError, match="inside a capture"),
        cuda.graph(cuda.CUDAGraph(), stream),
    ):
        context.execute_async_v3(stream.cuda_stream)
    context.execute_async_v3(stream.cuda_stream)
    with pytest.raises(Broken, match="fallback"), cuda.graph(cuda.CUDAGraph(), stream):
        context.execute_async_v3(stream.cuda_stream)
    assert not signatures(JETPACK_6).has("ICudaEngine.create_runtime_config")


def pytorchs_engine(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Cuda]:
    """PyTorch's engine with a convolution, on the stand-in's GPU."""
    from export.runtime import torch_engine

    engine = torch_engine.TorchEngine(torch.nn.Conv2d(3, 1, 1), model_info())
    cuda = Cuda()
    monkeypatch.setattr(torch_engine, "torch", Torch(cuda))
    engine.device = torch.device("cuda:0")
    return engine, cuda


def test_pytorchs_engine_captures_beside_other_threads_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its graphs are captured with the same machine's other thread allocating all the time."""
    engine, cuda = pytorchs_engine(monkeypatch)
    engine.infer(images(2))
    engine.run_on_device(cuda.new(torch.from_numpy(images(2)), 0))
    assert cuda.capture_modes == ["thread_local"] * 2


def test_pytorchs_engine_leaves_copies_and_casts_to_the_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside the replay a frame costs one copy into pinned memory and one wait."""
    engine, cuda = pytorchs_engine(monkeypatch)
    kept = engine.infer(images(2))  # captures
    first = kept.copy()
    called: list[str] = []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(func.__name__)
            return func(*args, **kwargs or {})

    replay = Graph.replay

    def noted(graph: Graph) -> None:
        called.append("replay")
        replay(graph)

    monkeypatch.setattr(Graph, "replay", noted)
    waited = Stream.synchronize

    def wait(stream: Stream) -> None:
        called.append("synchronize")
        with torch.utils._python_dispatch._disable_current_modes():
            waited(stream)

    monkeypatch.setattr(Stream, "synchronize", wait)
    for seed in (1, 2):
        batch = images(2, seed)
        del called[:]
        with Calls():
            given = engine.infer(batch)
        plain = [name for name in called if not name.startswith(("detach", "alias", "lift_fresh"))]
        assert plain[:3] == ["copy_.default", "replay", "synchronize"]
        # What Tensor.numpy() asks of memory that it shares.
        assert set(plain[3:]) <= {"to.dtype_layout", "resolve_conj.default", "resolve_neg.default"}
        with torch.no_grad():
            wanted = engine._network(torch.from_numpy(batch)).numpy()
        np.testing.assert_allclose(given, wanted, atol=1e-6)
    np.testing.assert_array_equal(kept, first)  # the caller's own


def test_pytorchs_engine_answers_on_the_device_for_each_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, cuda = pytorchs_engine(monkeypatch)
    for seed in (1, 2):
        batch = images(3, seed)
        answer = engine.run_on_device(cuda.new(torch.from_numpy(batch), 0))["logits"]
        with torch.inference_mode():  # the stand-in computes only now
            cuda.current_stream().synchronize()
        with torch.no_grad():
            wanted = engine._network(torch.from_numpy(batch))
        torch.testing.assert_close(answer.as_subclass(torch.Tensor), wanted)
