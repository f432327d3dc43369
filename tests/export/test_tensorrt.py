"""TensorRT for RTX builds here without a GPU; calls have the types of TensorRT's stubs."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import onnx
import pytest

from export.build_engine import build, main
from export.builders import registry
from export.builders.spec import Spec
from export.mixed_precision import prepare
from export.options import BuildOptions
from export.runtime.loading import runs_here
from medisseg.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [ROOT / "export/builders/tensorrt_builder.py", ROOT / "export/runtime/tensorrt_engine.py"]
SOURCES += [ROOT / "export/builders/tensorrt_config.py", ROOT / "export/runtime/kernel_cache.py"]
SOURCES += [ROOT / "export/builders/tensorrt_watch.py", ROOT / "export/runtime/tensorrt_batch.py"]
CONFIGURATION = """[mypy]
follow_imports = skip
check_untyped_defs = true
[mypy-tensorrt.*,tensorrt_bindings.*]
follow_imports = silent
ignore_errors = true
[mypy-tensorrt_libs.*]
ignore_missing_imports = true
"""


def test_calls_have_the_types_of_tensorrt(tmp_path: Path) -> None:
    """The stubs are of 10.13: their five lines that no Python reads are mended."""
    api = pytest.importorskip("mypy.api")
    wheel = downloaded("tensorrt-stubs", "10.13.0.35.1", tmp_path)
    shutil.unpack_archive(wheel, tmp_path / "stubs", "zip")
    stub = tmp_path / "stubs/tensorrt_bindings/tensorrt.pyi"
    text = re.sub(r"\bin: list", "inputs: list", stub.read_text())
    stub.write_text(text.replace("channel_axis: int)", "channel_axis: int = ...)"))
    (tmp_path / "mypy.ini").write_text(CONFIGURATION)
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import tensorrt as T\ndef f(p: T.IOptimizationProfile) -> None:\n    p.sit()\n"
    )
    words = ["--config-file", str(tmp_path / "mypy.ini"), "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [sys.executable, "-m", api.__name__.split(".")[0], *words, *map(str, SOURCES), str(wrong)],
        env={**os.environ, "MYPYPATH": str(tmp_path / "stubs")}, capture_output=True, text=True,
    )  # fmt: skip
    assert '"IOptimizationProfile" has no attribute "sit"' in done.stdout, "the stubs were not read"
    assert done.stdout.count("error:") == 1, done.stdout


def downloaded(name: str, version: str, folder: Path) -> Path:
    """Return the wheel of a distribution, or skip the test where no index is reached."""
    tag = f"{sys.version_info.major}{sys.version_info.minor}"
    got = subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check",
         "--python-version", tag, "--only-binary=:all:", "-d", str(folder), f"{name}=={version}"],
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    wheels = list(folder.glob("*.whl"))
    if got.returncode or not wheels:
        pytest.skip(f"{name} {version} could not be downloaded")
    return wheels[0]


@pytest.fixture(scope="module")
def rtx_bundle(checkpoint, frames, tmp_path_factory):  # type: ignore[no-untyped-def]
    pytest.importorskip("tensorrt_rtx")
    folder = tmp_path_factory.mktemp("rtx")
    return build(
        checkpoint, folder / "tiny.mdsg", backend="tensorrt-rtx", gpu=("sm86", "sm89"),
        data=frames, images=3, quiet=True, timing_cache=folder / "timings",
    )  # fmt: skip


def test_rtx_engine_is_fp16_and_verified(rtx_bundle) -> None:  # type: ignore[no-untyped-def]
    manifest = rtx_bundle.manifest
    assert manifest["precision"] == "fp16" and manifest["fp16_share"] == 1.0
    assert manifest["compute_capabilities"] == ["sm86", "sm89"]
    assert manifest["inspected"] == "engine" and set(manifest["convolutions"]) == {"FP16"}
    assert manifest["kernels"]["FP16"] > 50 and manifest["scratch_mb"] > 1
    assert manifest["gpu_name"] is None, "kernels are compiled where it opens"
    checked = manifest["verification"]
    assert checked["dice_agreement"] >= 0.998 and 0 < checked["max_abs"] < 0.05
    assert "emulated" in checked["by"]
    assert len(rtx_bundle.read("network.engine")) > 1e6
    assert not (rtx_bundle.path.parent / "timings").exists(), "this TensorRT times nothing"


def test_inspect_lists_the_kernels(rtx_bundle, bundle, capsys) -> None:  # type: ignore[no-untyped-def]
    assert main(["inspect", str(rtx_bundle.path), "--layers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "ONNX nodes" in lines[0] and len(lines) > 50
    assert any("encoder.stem.conv/Conv" in line and " FP16 " in line for line in lines)
    assert main(["inspect", str(rtx_bundle.path)]) == 0
    assert "% give FP16" in capsys.readouterr().out
    with pytest.raises(UserError, match="for engines of tensorrt"):
        main(["inspect", str(bundle.path), "--layers"])


def test_rtx_bundle_is_verified_again_and_its_graph_runs_here(rtx_bundle, frames, capsys) -> None:  # type: ignore[no-untyped-def]
    from export.runtime import load_engine

    assert main(["verify", str(rtx_bundle.path), "--data", str(frames), "--images", "2"]) == 0
    assert "Dice between masks" in capsys.readouterr().out
    if runs_here(rtx_bundle):
        with pytest.raises(UserError, match="backend openvino"):
            load_engine(rtx_bundle.path)
    with load_engine(rtx_bundle.path, backend="openvino", precision="fp32") as engine:
        assert engine.backend == "openvino"


def test_rtx_refuses_gpus_that_it_does_not_know(graph: onnx.ModelProto) -> None:
    pytest.importorskip("tensorrt_rtx")
    from export.mixed_precision import PreparedGraph

    spec = Spec("fp32", gpus=("sm103",), input_shape=(3, 64, 96))
    with pytest.raises(UserError, match="sm103.*builds for.*sm86"):
        registry.BUILDERS["tensorrt-rtx"](PreparedGraph(graph, graph), spec, io.BytesIO)


class Bar:
    """Stands in for the progress bar; slow enough to be stopped."""

    def __init__(self, wait: float = 0.0) -> None:
        self.phases: list[str] = []
        self.steps, self.wait = 0, wait

    def __call__(self) -> Bar:
        return self

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def add_task(self, name: str, total: int) -> int:
        self.phases.append(name)
        return len(self.phases)

    def update(self, task: int, completed: int) -> None:
        self.steps += 1
        time.sleep(self.wait)

    def remove_task(self, task: int) -> None:
        return None


def test_progress_is_reported_and_ctrl_c_stops_the_build(graph: onnx.ModelProto) -> None:
    pytest.importorskip("tensorrt_rtx")
    prepared = prepare(graph, "fp32", [])
    spec = Spec("fp32", gpus=("sm86",), input_shape=(3, 64, 96))
    bar = Bar()
    built = registry.BUILDERS["tensorrt-rtx"](prepared, spec, bar)
    assert built.convolutions == {"FP32": sum(n.op_type == "Conv" for n in graph.graph.node)}
    assert len(bar.phases) > 3 and bar.steps > 50

    slow = Bar(wait=0.02)
    stop = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT))
    stop.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            registry.BUILDERS["tensorrt-rtx"](prepared, spec, slow)
    finally:
        stop.cancel()
    assert slow.steps < bar.steps


def test_rtx_without_a_gpu_wants_names_before_anything_is_exported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr("export.options.local_gpu", lambda: None)
    with pytest.raises(UserError, match="--gpu sm86,sm89"):
        BuildOptions(backend="tensorrt-rtx").resolved()


def test_missing_backends_say_what_to_install(checkpoint: Path) -> None:
    for backend in ("tensorrt", "torch-tensorrt"):
        if registry.available(backend) is None:
            continue
        with pytest.raises(UserError, match=f"--backend {backend}.*pip install"):
            build(checkpoint, backend=backend, quiet=True)


def test_documents_name_what_never_ran() -> None:
    text = (ROOT / "docs" / "guide" / "export.md").read_text()
    assert "never ran" in text, textwrap.shorten(text, 80)
