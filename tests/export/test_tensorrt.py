"""TensorRT for RTX builds here without a GPU; TensorRT's real bindings have what our code uses."""

from __future__ import annotations

import ast
import io
import json
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
from export.options import BuildOptions
from export.runtime.loading import runs_here
from export.settle import settle
from medisseg.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [ROOT / "export/builders/tensorrt_builder.py", ROOT / "export/runtime/tensorrt_engine.py"]
SOURCES.append(ROOT / "export/builders/tensorrt_watch.py")
# What only some versions have, and only code for those versions uses.
ONLY = {
    "BuilderFlag.FP16": "10",
    "BuilderFlag.INT8": "10",
    "BuilderFlag.OBEY_PRECISION_CONSTRAINTS": "10",
    "ILayer.precision": "10",
    "ComputeCapability": "rtx",
}
FUNCTIONS = """createInferBuilder_INTERNAL createInferRefitter_INTERNAL
createInferRuntime_INTERNAL createNvOnnxParserRefitter_INTERNAL createNvOnnxParser_INTERNAL
getBuilderPluginRegistry getNvOnnxParserVersion getPluginRegistry initLibNvInferPlugins"""
# The class of each variable that holds a TensorRT object in our code.
CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "layer": "ILayer",
    "tensor": "ITensor",
    "engine": "ICudaEngine",
    "inspector": "EngineInspector",
    "plan": "ICudaEngine",
    "context": "IExecutionContext",
    "_context": "IExecutionContext",
    "_engine": "ICudaEngine",
    "_runtime": "Runtime",
    "runtime": "Runtime",
}


def used_attributes() -> tuple[set[str], set[str]]:
    """Return ("trt.X.Y" names, "Class.attribute" names) that our sources use."""
    plain: set[str] = set()
    methods: set[str] = set()
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            if not isinstance(node, ast.Attribute):
                continue
            text = ast.unparse(node)
            if text.startswith("trt.") and "(" not in text:
                plain.add(text.removeprefix("trt."))
            owner = ast.unparse(node.value)
            if "self" not in owner.split(".")[:1] or owner in ("self._context", "self._engine"):
                name = CLASSES.get(owner.split(".")[-1])
                if name and "." not in owner.removeprefix("self.").removeprefix("engine."):
                    methods.add(f"{name}.{node.attr}")
    ours = {"ICudaEngine.device", "ICudaEngine._stream", "ICudaEngine._engine", "ICudaEngine._trt"}
    ours |= {"ICudaEngine._outputs", "ICudaEngine._input"}
    return {name for name in plain if not name.startswith("__")}, methods - ours


def test_what_is_used_is_found() -> None:
    plain, methods = used_attributes()
    assert "NetworkDefinitionCreationFlag.STRONGLY_TYPED" in plain
    assert {"Builder.build_serialized_network", "IExecutionContext.execute_async_v3"} <= methods
    assert len(plain) > 20 and len(methods) > 25


CHECK = """
import importlib.machinery, importlib.util, json, sys
loader = importlib.machinery.ExtensionFileLoader("tensorrt", sys.argv[1])
module = importlib.util.module_from_spec(importlib.util.spec_from_loader("tensorrt", loader))
loader.exec_module(module)
missing = []
for name in json.loads(sys.argv[2]):
    thing = module
    for part in name.split("."):
        thing = getattr(thing, part, None)
    if thing is None:
        missing.append(name)
print(json.dumps(missing))
"""


@pytest.mark.parametrize("version", ["10.16.1.11", "11.4.0.106"])
def test_every_attribute_is_in_the_real_bindings(version: str, tmp_path: Path) -> None:
    """The bindings import over three stub libraries: only nine C functions are needed."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the stub libraries")
    wheel = downloaded("tensorrt-cu13-bindings", version, tmp_path)
    shutil.unpack_archive(wheel, tmp_path / "wheel", "zip")
    source = tmp_path / "stub.c"
    source.write_text(
        "".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS.split())
    )
    for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        name = f"lib{library}.so.{version.split('.')[0]}"
        words = ["-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(tmp_path / name)]
        subprocess.run([compiler, *words, str(source)], check=True)
    plain, methods = used_attributes()
    major = version.split(".")[0]
    asked = [n for n in sorted(plain | methods) if ONLY.get(_key(n), major) == major]
    extension = next((tmp_path / "wheel").rglob("tensorrt.so"))
    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(extension), json.dumps(asked)],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == _only_in_rtx(asked)


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


def _key(name: str) -> str:
    return next((key for key in ONLY if name == key or name.startswith(f"{key}.")), name)


def _only_in_rtx(asked: list[str]) -> list[str]:
    """Names that only TensorRT for RTX has: reached behind a check for ComputeCapability."""
    rtx = ("IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability")
    return [name for name in asked if name in rtx]


def test_attributes_are_in_tensorrt_for_rtx() -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    plain, methods = used_attributes()
    absent = []
    for name in sorted(plain | methods):
        thing = rtx
        for part in name.split("."):
            thing = getattr(thing, part, None)
        if thing is None:
            absent.append(name)
    assert {_key(name) for name in absent} <= {n for n, where in ONLY.items() if where == "10"}


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
    assert manifest["inspected"] == "parsed network"
    checked = manifest["verification"]
    assert checked["dice_agreement"] >= 0.998 and 0 < checked["max_abs"] < 0.05
    assert "emulated" in checked["by"]
    assert len(rtx_bundle.read("network.engine")) > 1e6
    assert not (rtx_bundle.path.parent / "timings").exists(), "this TensorRT times nothing"


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
    from export.settle import Settled

    spec = Spec("fp32", gpus=("sm103",), input_shape=(3, 64, 96))
    with pytest.raises(UserError, match="sm103.*builds for.*sm86"):
        registry.BUILDERS["tensorrt-rtx"](Settled(graph, graph), spec, io.BytesIO)


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
    settled = settle(graph, "fp32", [])
    spec = Spec("fp32", gpus=("sm86",), input_shape=(3, 64, 96))
    bar = Bar()
    built = registry.BUILDERS["tensorrt-rtx"](settled, spec, bar)
    assert built.convolutions == {"FP32": sum(n.op_type == "Conv" for n in graph.graph.node)}
    assert len(bar.phases) > 3 and bar.steps > 50

    slow = Bar(wait=0.02)
    stop = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT))
    stop.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            registry.BUILDERS["tensorrt-rtx"](settled, spec, slow)
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
