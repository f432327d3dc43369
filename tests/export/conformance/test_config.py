"""What each version of TensorRT is asked for, over the signatures of its real bindings."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
from libraries import JETPACK_6, LAST_10, LAST_11

from export.builders import registry, tensorrt_config
from export.builders.spec import Spec
from export.options import BuildOptions
from medisseg.errors import UserError

EIGHT = "8.6.1"


def named(version: str, name: str = "tensorrt") -> Any:
    return types.SimpleNamespace(__name__=name, __version__=version)


@pytest.mark.parametrize(
    "version, dla, typed",
    [
        (EIGHT, -1, False),
        ("10.0.1", -1, True),
        (JETPACK_6, -1, True),  # JetPack 6 would else get the weak path for nothing
        (JETPACK_6, 0, False),
        (LAST_10, -1, True),
        (LAST_11, -1, True),
        ("11.4.1.3", 0, True),
    ],
)
def test_networks_are_strongly_typed(version: str, dla: int, typed: bool) -> None:
    assert tensorrt_config.is_typed(named(version), Spec("fp16", dla=dla)) is typed


@pytest.mark.parametrize(
    "version, able",
    [(EIGHT, True), ("10.3.0", True), ("10.7.0.23", True), ("10.8.0.43", False),
     (LAST_10, False), (LAST_11, False), ("11.4.1.3", True)],
)  # fmt: skip
def test_versions_with_dla(version: str, able: bool) -> None:
    spec = Spec("fp16", (1, 1, 1), dla=1)
    if able:
        tensorrt_config.refuse(named(version), spec)
        for wrong in (Spec("int8", (1, 1, 1), dla=1), Spec("fp32", (1, 1, 1), dla=1)):
            with pytest.raises(UserError, match="--dla takes FP16"):
                tensorrt_config.refuse(named(version), wrong)
        with pytest.raises(UserError, match="--dla takes one batch size"):
            tensorrt_config.refuse(named(version), Spec("fp16", (1, 1, 4), dla=1))
        return
    with pytest.raises(UserError, match="up to 10.7, or 11.4.1"):
        tensorrt_config.refuse(named(version), spec)


def test_version_compatible_engines_need_the_lean_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Spec("fp16", version_compatible=True)
    with pytest.raises(UserError, match="pip install tensorrt-lean"):
        tensorrt_config.refuse(named(LAST_11), spec)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: f"lib{name}.so.11")
    tensorrt_config.refuse(named(LAST_11), spec)
    with pytest.raises(UserError, match="--version-compatible is for tensorrt"):
        tensorrt_config.refuse(named("1.7.1", "tensorrt_rtx"), spec)
    with pytest.raises(UserError, match="--version-compatible is for tensorrt"):
        BuildOptions(backend="tensorrt-rtx", version_compatible=True)


class Recorder:
    """Takes every call and write that the real class takes, and remembers it."""

    def __init__(self, signatures: Any, kind: str) -> None:
        vars(self).update(_signatures=signatures, _kind=kind, _calls=[], _written={})

    def __getattr__(self, name: str) -> Any:
        if not self._signatures.has(f"{self._kind}.{name}"):
            raise AttributeError(f"{self._kind} has no {name}")

        def call(*args: Any, **words: Any) -> Any:
            self._calls.append((name, *args))
            return False if name == "get_flag" else 0

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        if not self._signatures.found[self._kind].get(name, {}).get("writes"):
            raise AttributeError(f"{self._kind}.{name} cannot be written")
        self._written[name] = value


class Names:
    """An enumeration of the real bindings: a name that a version lacks is an error."""

    def __init__(self, signatures: Any, owner: str = "") -> None:
        self._signatures, self._owner = signatures, owner

    def __getattr__(self, name: str) -> Any:
        full = f"{self._owner}.{name}" if self._owner else name
        if not self._signatures.has(full):
            raise AttributeError(full)
        return full if self._owner or name == "float32" else Names(self._signatures, name)


def configured(signatures: Any, version: str, spec: Spec, fp32_nodes: tuple[str, ...] = ()) -> Any:
    trt = Names(signatures)
    rtx = signatures.has("ComputeCapability")
    trt.__name__, trt.__version__ = "tensorrt_rtx" if rtx else "tensorrt", version
    trt.Dims = tuple
    log = types.SimpleNamespace(errors=[], layers="", scratch_mb=None)
    builder, config, network = (
        Recorder(signatures, kind) for kind in ("Builder", "IBuilderConfig", "INetworkDefinition")
    )
    tensor = Recorder(signatures, "ITensor")
    tensor.__dict__["name"] = "images"
    profile = Recorder(signatures, "IOptimizationProfile")
    network.__dict__["get_input"] = lambda i: tensor
    builder.__dict__["create_optimization_profile"] = lambda: profile
    layers = [Recorder(signatures, "ILayer") for _ in range(2)]
    for layer, name in zip(layers, ("a", "b"), strict=True):
        layer.__dict__["name"] = name
    network.__dict__.update(num_layers=2, get_layer=layers.__getitem__)
    tensorrt_config.configure(trt, builder, config, network, spec, log)
    if not tensorrt_config.is_typed(trt, spec):
        tensorrt_config.weakly_typed(trt, network, config, spec, fp32_nodes)
    return config, profile, tensor, layers


@pytest.mark.parametrize("version", [JETPACK_6, LAST_10, LAST_11])
def test_tf32_is_off_and_layers_are_kept(signatures: Callable[[str], Any], version: str) -> None:
    config, profile, _, _ = configured(signatures(version), version, Spec("fp32", (2, 3, 4)))
    assert ("clear_flag", "BuilderFlag.TF32") in config._calls
    assert ("get_flag", "BuilderFlag.TF32") in config._calls
    assert config._written["profiling_verbosity"] == "ProfilingVerbosity.DETAILED"
    shapes = [(count, 3, 256, 256) for count in (2, 3, 4)]
    assert profile._calls == [("set_shape", "images", *shapes)]
    assert not [call for call in config._calls if call[0] == "set_flag"]


def test_tf32_that_stays_on_is_an_error(signatures: Callable[[str], Any]) -> None:
    known = signatures(LAST_11)
    always = lambda self, name: lambda *args: True  # noqa: E731
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(Recorder, "__getattr__", always)
        with pytest.raises(UserError, match="TF32 could not be turned off"):
            configured(known, LAST_11, Spec("fp32"))


def test_dla_on_jetpack_6(signatures: Callable[[str], Any]) -> None:
    spec = Spec("fp16", (2, 2, 2), dla=1)
    config, _, tensor, layers = configured(signatures(JETPACK_6), JETPACK_6, spec, ("b",))
    assert config._written["DLA_core"] == 1
    assert config._written["default_device_type"] == "DeviceType.DLA"
    flags = {call[1] for call in config._calls if call[0] == "set_flag"}
    wanted = {"GPU_FALLBACK", "FP16", "OBEY_PRECISION_CONSTRAINTS"}
    assert flags == {f"BuilderFlag.{name}" for name in wanted}
    assert tensor._written["shape"] == (2, 3, 256, 256), "DLA takes no dynamic batch"
    assert "precision" not in layers[0]._written and layers[1]._written["precision"] == "float32"


def test_rtx_engines_may_not_allocate_while_they_run(signatures: Callable[[str], Any]) -> None:
    config, *_ = configured(signatures("rtx"), "1.7.1", Spec("fp16"))
    assert ("set_flag", "BuilderFlag.REQUIRE_USER_ALLOCATION") in config._calls


def test_auto_takes_what_can_serve_the_gpus_that_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With both libraries installed ``--gpu sm86`` is for TensorRT for RTX."""
    monkeypatch.setattr(registry, "available", lambda backend: None)
    monkeypatch.setattr(registry, "refuse", lambda backend, spec: None)
    monkeypatch.setattr("export.options.local_gpu", lambda: "sm89")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    chosen = lambda **o: BuildOptions(**o).resolved().backend  # noqa: E731
    assert chosen(gpu=("sm86",)) == "tensorrt-rtx"
    assert chosen(gpu=("sm89",)) == "tensorrt" and chosen() == "tensorrt"
    assert chosen(dla=0, batch=(1, 1, 1)) == "tensorrt"
    monkeypatch.setattr(registry, "available", lambda b: "gone" if b == "tensorrt" else None)
    assert chosen() == "tensorrt-rtx"
    with pytest.raises(UserError, match="--gpu and --dla need"):
        chosen(dla=0, batch=(1, 1, 1))


@pytest.mark.parametrize(
    "wrong",
    [{"raw_frames": (0, 0)}, {"precision": "int8", "data": "x"}, {"batch": (2, 2, 4)},
     {"gpu": ("sm86",)}],
)  # fmt: skip
def test_torch_tensorrt_refuses_early(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="torch-tensorrt compiles the PyTorch network"):
        BuildOptions(backend="torch-tensorrt", **wrong)


def test_no_driver_is_said_before_anything_is_exported(
    places: Callable[..., Any], signatures: Callable[[str], Any], tmp_path: Any
) -> None:
    from libraries import python

    script = (
        "from export.build_engine import main; from medisseg.errors import command; command(main)"
    )
    words = ["edge-kvasir", "--backend", "tensorrt", "--out", str(tmp_path / "x.mdsg")]
    done = python(places(LAST_11), "-c", script, *words)
    assert done.returncode == 2 and not done.stdout
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and "no NVIDIA GPU and driver" in lines[0]
    assert not list(tmp_path.iterdir())
