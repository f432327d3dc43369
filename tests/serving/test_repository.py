"""``medisseg build --triton``: the configuration is the manifest's, and versions are never lost."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export import build_engine, triton_repository
from export.bundle import Bundle, write_bundle
from export.triton_repository import Target, write_model
from medisseg.errors import UserError


def config_of(model: Path) -> Any:
    text = (model / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def other(
    bundle: Bundle, place: Path, parts: dict[str, bytes] | None = None, **facts: Any
) -> Bundle:
    """The same graph with another manifest."""
    held = {name: bundle.read(name) for name in bundle.manifest["files"]} | (parts or {})
    known = {k: v for k, v in bundle.manifest.items() if k not in ("files", "digest", "format")}
    return write_bundle(place, held, known | facts)


def test_the_configuration_says_what_the_manifest_says(bundle: Bundle, tmp_path: Path) -> None:
    model, version = write_model(bundle, Target(tmp_path / "models", instances=2))
    config = config_of(model)
    assert (model.name, version) == ("edge-polyp", 1) == (config.name, 1)
    assert (config.backend, config.platform) == ("onnxruntime", "")
    assert config.max_batch_size == bundle.manifest["batch"][-1] == 4
    (given,), (answer,) = config.input, config.output
    kind = model_config_pb2.TYPE_FP32
    assert (given.name, given.data_type, list(given.dims)) == ("images", kind, [3, 256, 256])
    assert (answer.name, answer.data_type, list(answer.dims)) == ("logits", kind, [1, 256, 256])
    assert list(config.version_policy.specific.versions) == [1]
    (group,) = config.instance_group
    assert (group.count, group.kind) == (2, model_config_pb2.ModelInstanceGroup.KIND_CPU)
    # A queue policy makes answers half a second late (benchmarks.serving): none may stand here.
    assert config.HasField("dynamic_batching") and not config.dynamic_batching.ListFields()
    assert [(warm.batch_size, list(warm.inputs)) for warm in config.model_warmup] == [
        (1, ["images"]), (4, ["images"])]  # fmt: skip
    assert json.loads(config.parameters["medisseg"].string_value) == bundle.manifest
    assert (model / "1/model.onnx").read_bytes() == bundle.read("network.onnx")
    assert sorted(p.name for p in model.rglob("*")) == [
        "1", "config.pbtxt", "config.pbtxt", "model.onnx"]  # fmt: skip


FAMILY = {
    "tensorrt": ("tensorrt", "tensorrt_plan", {"network.engine": b"plan"}, {"model.plan": b"plan"}),
    "openvino": (
        "openvino", "", {"network.xml": b"<net/>", "network.bin": b"weights"},
        {"model.xml": b"<net/>", "model.bin": b"weights"},
    ),
    "tensorrt-rtx": ("python", "", {"network.engine": b"jit"}, {"bundle/network.engine": b"jit"}),
    "torch-tensorrt": ("python", "", {"network.ep": b"ep"}, {"bundle/network.ep": b"ep"}),
}  # fmt: skip


@pytest.mark.parametrize("backend", FAMILY)
def test_each_backend_has_its_own_files(bundle: Bundle, tmp_path: Path, backend: str) -> None:
    name, platform, parts, files = FAMILY[backend]
    gpus = ["sm89"] if "tensorrt" in backend else []
    facts = {"backend": backend, "compute_capabilities": gpus, "batch": [1, 2, 8]}
    model, _ = write_model(other(bundle, tmp_path / "b", parts, **facts), Target(tmp_path / "m"))
    config = config_of(model)
    assert (config.backend, config.platform, config.max_batch_size) == (name, platform, 8)
    groups = model_config_pb2.ModelInstanceGroup
    kind = groups.KIND_GPU if gpus else groups.KIND_CPU
    assert config.instance_group[0].kind == kind
    assert [warm.batch_size for warm in config.model_warmup] == [1, 2, 8]
    for path, content in files.items():
        assert (model / "1" / path).read_bytes() == content
    if name == "python":
        compile((model / "1/model.py").read_text(), "model.py", "exec")
        assert Bundle.open(model / "1/bundle").manifest["digest"]


def test_an_update_is_a_new_version_and_the_old_one_can_be_served_again(
    bundle: Bundle, tmp_path: Path
) -> None:
    target = Target(tmp_path / "models")
    model, _ = write_model(bundle, target)
    first = (model / "config.pbtxt").read_text()
    stricter = other(bundle, tmp_path / "stricter", threshold=0.7)
    assert write_model(stricter, target) == (model, 2)
    served = config_of(model)
    assert list(served.version_policy.specific.versions) == [2]
    assert json.loads(served.parameters["medisseg"].string_value)["threshold"] == 0.7
    assert (model / "1/config.pbtxt").read_text() == first
    assert write_model(bundle, target) == (model, 1)  # known already: served again, not copied
    assert (model / "config.pbtxt").read_text() == first
    shutil.copy(model / "2/config.pbtxt", model / "config.pbtxt")  # as docs/guide/service.md does
    assert list(config_of(model).version_policy.specific.versions) == [2]
    assert sorted(path.name for path in model.iterdir()) == ["1", "2", "config.pbtxt"]


def test_a_crash_leaves_the_served_version_as_it_was(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target(tmp_path / "models")
    model, _ = write_model(bundle, target)
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(triton_repository, "_write_version", full)
    with pytest.raises(UserError, match="no space left"):
        write_model(other(bundle, tmp_path / "b", threshold=0.6), target)
    assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in model.iterdir()) == ["1", "config.pbtxt"]


def test_the_command_takes_a_bundle(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(bundle.path), "--triton", str(tmp_path / "models"), "--triton-name", "polyps-2"]
    assert build_engine.main(words) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path}/models/polyps-2: version 1 is served\n"
    assert config_of(tmp_path / "models/polyps-2").name == "polyps-2"


WRONG = {
    "a file": (["--triton", "{tmp}/file"], "is a file; expected a folder"),
    "a bundle": (["--triton", "{bundle}"], "is a bundle; expected the folder above"),
    "one model": (["--triton", "{tmp}/model"], "is one model of a repository"),
    "a foreign model": (["--triton", "{tmp}", "--triton-name", "foreign"], "not written by medis"),
    "a name with a slash": (["--triton", "{tmp}/m", "--triton-name", "a/b"], "--triton-name is"),
    "a dotted name": (["--triton", "{tmp}/m", "--triton-name", ".."], "--triton-name is"),
    "a backend": (["--triton", "{tmp}/m", "--triton-backend", "onnx"], "expected auto or python"),
    "no instances": (["--triton", "{tmp}/m", "--triton-instances", "0"], "expected 1 to 64"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_places_are_one_line(bundle: Bundle, tmp_path: Path, case: str) -> None:
    words, message = WRONG[case]
    (tmp_path / "file").write_text("")
    for name in ("model", "foreign"):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "config.pbtxt").write_text("name: 'someone else'")
    before = sorted(tmp_path.rglob("*"))
    chosen = [word.format(tmp=tmp_path, bundle=bundle.path) for word in words]
    with pytest.raises(UserError, match=message) as raised:
        build_engine.main([str(bundle.path), *chosen])
    assert "\n" not in str(raised.value) and sorted(tmp_path.rglob("*")) == before


def test_a_bundle_that_cannot_run_one_image_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    fixed = other(bundle, tmp_path / "fixed", batch=[4, 4, 4])
    with pytest.raises(UserError, match="build it with --batch 1:4:4"):
        write_model(fixed, Target(tmp_path / "models"))
    assert not (tmp_path / "models" / "edge-polyp").exists()


def test_without_the_client_library_one_line(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tritonclient.grpc", None)
    with pytest.raises(UserError, match=r"pip install 'tritonclient\[grpc,http\]'"):
        write_model(bundle, dataclasses.replace(Target(tmp_path / "models")))
