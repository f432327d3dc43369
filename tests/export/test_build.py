"""The command as users run it: bundles that are proved, and one line for everything wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import verify
from export.build_engine import build, main
from export.bundle import Bundle
from export.bundle_commands import summary
from export.options import BuildOptions
from export.runtime import load_engine
from export.samples import frames_from
from export.steps import Steps
from medisseg.checkpoint import save_checkpoint
from medisseg.convention import InputConvention
from medisseg.errors import UserError
from medisseg.files import sha256
from medisseg.labels import Label
from medisseg.model.create import create_model
from medisseg.predictor import Predictor

ROOT = Path(__file__).resolve().parents[2]


def test_command_builds_inspects_and_verifies_from_any_folder(
    run: Callable[..., tuple[int, str, str]], checkpoint: Path, frames: Path, tmp_path: Path
) -> None:
    out = tmp_path / "one file; $(touch hacked) 'x'.mdsg"
    code, said, errors = run(
        checkpoint, "--backend", "openvino", "--precision", "fp32", "--data", frames, "--out", out,
        cwd=tmp_path,
    )  # fmt: skip
    assert code == 0, errors
    manifest = Bundle.open(out).manifest
    assert manifest["backend"] == "openvino" and manifest["precision"] == "fp32"
    assert manifest["checkpoint"]["sha256"] == sha256(checkpoint)
    assert manifest["verification"]["dice_agreement"] > 0.998
    assert manifest["verification"]["max_abs"] < 0.01
    assert manifest["verification"]["dice_network"] is not None
    assert manifest["verification"]["dice_own_size"] is None
    assert "Dice between masks" in said and "hacked" not in os.listdir(tmp_path)

    code, said, errors = run("inspect", out, cwd=tmp_path)
    assert code == 0 and "openvino" in said and manifest["command"] in said, errors
    code, said, errors = run(
        "verify", out, "--data", frames, "--out", tmp_path / "v.json", cwd=tmp_path
    )
    assert code == 0, errors
    again = json.loads((tmp_path / "v.json").read_text())
    assert again["images"] == 6 and again["dice_agreement"] > 0.998


def test_another_input_size_stands_beside_the_one_that_was_trained_at(
    checkpoint: Path, frames: Path, tmp_path: Path
) -> None:
    """A smaller input is faster and less exact: both Dice are in the bundle."""
    made = build(
        checkpoint, tmp_path / "large", backend="onnx", precision="fp32", size=(96, 144),
        data=frames, images=2, quiet=True,
    )  # fmt: skip
    checked = verify.Verification(**made.manifest["verification"])
    scores = []
    with load_engine(checkpoint, device="cpu") as exact:
        for frame in frames_from(frames, 2):
            logits = exact.infer(exact.convention.preprocess(frame.image)[None])[0]
            found = exact.convention.restore(logits, frame.image.shape[:2])[0] > 0
            scores.append(2 * (found & (frame.mask > 0)).sum() / (found.sum() + frame.mask.sum()))
    assert checked.dice_own_size == pytest.approx(np.mean(scores), abs=1e-3)
    assert checked.dice_network is not None and checked.dice_own_size != checked.dice_network
    assert "trained at: " in summary(checked)


@pytest.mark.parametrize(
    ("precision", "dice", "p999", "wrong"),
    [
        ("int8", 0.9901, 0.199, 0),
        ("int8", 0.9899, 0.199, 1),
        ("int8", 0.9901, 0.201, 1),
        ("bf16", 0.9901, 0.199, 1),
        ("bf16", 0.9901, 0.099, 0),
        ("fp16", 0.9979, 0.021, 2),
        ("fp16", 0.9981, 0.019, 0),
    ],
)
def test_how_far_each_precision_may_be_off(
    precision: str, dice: float, p999: float, wrong: int
) -> None:
    checked = verify.Verification(0.5, p999, dice, 1.0, 8, "frames", "engine", 0.9, -0.001)
    assert len(checked.failures(verify.TOLERANCES[precision], precision)) == wrong


@pytest.mark.parametrize(("tolerance", "most"), [(0.02, 0.2), (0.05, 0.5)])
def test_a_larger_tolerance_of_int8_allows_no_more_than_elsewhere(
    tolerance: float, most: float
) -> None:
    """A bundle from before has 0.02 in its manifest."""
    for p999, wrong in ((most - 0.001, 0), (most + 0.001, 1)):
        checked = verify.Verification(0.5, p999, 0.99, 1.0, 8, "frames", "engine", 0.9, -0.001)
        assert len(checked.failures(tolerance, "int8")) == wrong


def test_int8_and_raw_frames_are_built_and_run(
    checkpoint: Path, frames: Path, tmp_path: Path
) -> None:
    options = {"data": frames, "quiet": True, "tolerance": 0.3, "images": 3}
    made = build(
        checkpoint, tmp_path / "int8", backend="openvino", precision="int8",
        calibration_images=4, raw_frames=(80, 120), raw_color="BGR", **options,
    )  # fmt: skip
    assert made.manifest["convolutions"].get("INT8", 0) > 0
    frame = frames_from(frames, 1)[0].image
    with load_engine(made.path) as engine, load_engine(checkpoint, device="cpu") as exact:
        assert "int8" in engine.name
        mask = engine.segment(np.ascontiguousarray(frame[None, ..., ::-1]))[0]
        logits = exact.infer(exact.convention.preprocess(frame)[None])[0]
        wanted = exact.convention.restore(logits, frame.shape[:2])[0] > 0
        assert 0.02 < wanted.mean() < 0.98
        assert np.mean(mask == wanted) > 0.9
        with pytest.raises(UserError, match="raw-frames"):
            engine.infer(np.zeros((1, 3, 64, 96), np.float32))


def test_beyond_the_tolerance_nothing_is_written_and_the_layer_is_named(
    checkpoint: Path, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export import mixed_precision as S
    from export.build_engine import prepare as real

    def worse(graph: object, *args: object, **more: object) -> S.PreparedGraph:
        import onnx
        from onnx import numpy_helper

        prepared = real(graph, *args, **more)  # type: ignore[arg-type]
        broken = onnx.ModelProto.FromString(prepared.model.SerializeToString())
        convolutions = [node for node in broken.graph.node if node.op_type == "Conv"]
        for tensor in broken.graph.initializer:
            if tensor.name == convolutions[3].input[1]:
                value = -numpy_helper.to_array(tensor)
                tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        worse.name = convolutions[3].name  # type: ignore[attr-defined]
        return S.PreparedGraph(broken, broken)

    monkeypatch.setattr("export.build_engine.prepare", worse)
    with pytest.raises(UserError) as caught:
        build(checkpoint, tmp_path / "x", backend="onnx", data=frames, images=2, quiet=True)
    assert f"first to diverge: {worse.name}" in str(caught.value)  # type: ignore[attr-defined]
    assert "is not the network" in str(caught.value) and not (tmp_path / "x").exists()


def test_bf16_that_is_not_exact_names_its_layer_and_auto_builds_fp32_from_the_same_graph(
    checkpoint: Path, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino

    from export import graph

    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bfloat16")
    exports = []
    export_graph = graph.export_graph

    def counted(*args: Any, **more: Any) -> Any:
        exports.append(args)
        return export_graph(*args, **more)

    monkeypatch.setattr(graph, "export_graph", counted)
    options = {"backend": "openvino", "data": frames, "images": 2, "quiet": True, "tolerance": 1e-4}
    with pytest.raises(UserError, match=r"first to diverge: \S+ \(error .*use --precision fp32"):
        build(checkpoint, tmp_path / "asked", precision="bf16", **options)
    assert not (tmp_path / "asked").exists()
    monkeypatch.setattr("export.builders.registry.default_precision", lambda _: "bf16")
    made = build(checkpoint, tmp_path / "auto", **options)
    assert made.manifest["precision"] == "fp32" and len(exports) == 2
    assert made.manifest["verification"]["p999_abs"] < 1e-3


def test_fp16_asked_for_and_fp32_built_is_refused_and_nothing_is_written(
    checkpoint: Path, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr("export.precision.typed", lambda graph, *_: graph)
    with pytest.raises(UserError, match="fp16 was asked for, but of .*FP32.*nothing was written"):
        build(
            checkpoint, tmp_path / "x", backend="tensorrt-rtx", precision="fp16", gpu=("sm86",),
            data=frames, images=1, quiet=True,
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_answers_that_are_not_finite_are_refused() -> None:
    def overflow(image: verify.Image) -> tuple[verify.Array, None]:
        bad = np.full((1, 1, 8, 8), np.inf if image.max() == 255 else 0.0, np.float32)
        return bad, None

    with pytest.raises(UserError, match="all 255"):
        verify.check_extremes(overflow, (8, 8), "engine")


def test_comparison_is_by_value() -> None:
    from export.samples import ReferenceFrame
    from medisseg.convention import InputConvention

    convention = InputConvention(size=(16, 16))
    wanted = np.full((1, 1, 16, 16), -2.0, np.float32)
    wanted[..., :8] = 2.0
    given = wanted.copy()
    given[..., 0, 0] = -2.0  # one of 128 foreground pixels is lost
    image = np.zeros((16, 16, 3), np.uint8)
    truth = (wanted[0, 0] > 0).astype(np.uint8)
    checked = verify.compare(
        lambda _: (wanted, None), lambda _: (given, None), [ReferenceFrame(image, truth, "a")],
        convention, 0.5, source="test", by="test",
    )  # fmt: skip
    difference = 1 / (1 + np.exp(-2.0)) - 1 / (1 + np.exp(2.0))
    assert checked.max_abs == pytest.approx(difference, abs=1e-6)
    assert checked.dice_agreement == pytest.approx(2 * 127 / (127 + 128))
    assert checked.pixel_agreement == pytest.approx(255 / 256)
    assert checked.dice_network == 1 and checked.dice_change == pytest.approx(254 / 255 - 1)
    assert len(checked.failures(0.002)) == 3 and not checked.failures(0.2)


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {Path('executed').absolute()}",)


def wrong_cases(tmp_path: Path, checkpoint: Path, bundle: Bundle) -> list[tuple[list, str]]:
    (tmp_path / "text.safetensors").write_text("not a checkpoint")
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Payload()))
    (tmp_path / "nothing").mkdir()
    onnx_backend = ["--backend", "onnx"]
    return [
        ([tmp_path / "none.safetensors"], "does not exist"),
        ([tmp_path / "text.safetensors"], "safetensors"),
        ([tmp_path / "empty.safetensors"], "safetensors"),
        ([tmp_path / "evil.pth"], "safetensors"),
        ([tmp_path / "nothing"], "folder"),
        ([checkpoint, *onnx_backend, "--size", "100x128"], "multiples of 16, for example 96x128"),
        ([checkpoint, *onnx_backend, "--size", "big"], "expected HxW"),
        ([checkpoint, "--gpu", "sm88"], "did you mean sm8"),
        ([checkpoint, "--backend", "tensorrt-rtx", "--gpu", "sm90"], "H100"),
        ([checkpoint, "--backend", "tensorrt-rtx", "--dla", "0"], "no DLA"),
        ([checkpoint, "--backend", "tensorrt-rtx", "--hardware-compatible"], "name the GPUs"),
        ([checkpoint, "--dla", "0"], "one batch size"),
        ([checkpoint, "--backend", "openvino", "--gpu", "sm89"], "TensorRT family"),
        ([checkpoint, *onnx_backend, "--precision", "int8"], "--data"),
        ([checkpoint, *onnx_backend, "--precision", "bf16"], "no bfloat16"),
        ([checkpoint, "--precision", "fp61"], "did you mean fp16"),
        ([checkpoint, "--backend", "onxx"], "did you mean onnx"),
        ([checkpoint, *onnx_backend, "--batch", "4:2:1"], "1 <= MIN <= BEST <= MAX"),
        ([checkpoint, *onnx_backend, "--batch", "x"], "MIN:BEST:MAX"),
        ([checkpoint, *onnx_backend, "--tolerance", "3"], "between 0 and 1"),
        ([checkpoint, *onnx_backend, "--data", tmp_path / "nothing"], "no images"),
        ([checkpoint, *onnx_backend, "--data", tmp_path / "nowhere"], "no data folder"),
        ([checkpoint, *onnx_backend, "--out", checkpoint], "no bundle"),
        (["inspect", tmp_path / "nothing"], "manifest.json"),
        (["verify", tmp_path / "nowhere.mdsg"], "no bundle"),
        (["verify", bundle.path, "--checkpoint", tmp_path / "text.safetensors"], "is not the"),
        ([checkpoint, *onnx_backend, "--raw-frames", "--uncertainty"], "masks only"),
        ([checkpoint, *onnx_backend, "--uncertainty"], "uncertainty"),
    ]


def test_wrong_input_is_one_line(
    tmp_path: Path,
    checkpoint: Path,
    bundle: Bundle,
    frames: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for words, said in wrong_cases(tmp_path, checkpoint, bundle):
        wished = [str(word) for word in words]
        if words[0] not in ("inspect", "verify") and "--data" not in wished:
            wished += [] if "int8" in wished else ["--data", str(frames)]
        with pytest.raises(UserError) as caught:
            main(wished)
        message = str(caught.value)
        assert said in message and "\n" not in message, (words, message)
    assert not (tmp_path / "executed").exists()


def test_wrong_input_exits_with_2(
    run: Callable[..., tuple[int, str, str]], checkpoint: Path
) -> None:
    code, said, errors = run(checkpoint, "--size", "100x128")
    assert code == 2 and errors.startswith("error: --size") and errors.count("\n") == 1, said


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_build_leaves_nothing(
    how: signal.Signals, checkpoint: Path, frames: Path, tmp_path: Path
) -> None:
    words = [sys.executable, str(ROOT / "export" / "build_engine.py"), str(checkpoint)]
    words += ["--backend", "onnx", "--data", str(frames), "--out", str(tmp_path / "x")]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()  # the checkpoint is open
    time.sleep(0.3)
    child.send_signal(how)
    _, errors = child.communicate(timeout=120)
    assert child.returncode != 0 and list(tmp_path.iterdir()) == []
    assert how == signal.SIGKILL or "Traceback" not in errors


def test_an_interrupt_that_a_library_swallows_stops_the_next_step() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Steps(quiet=True) as steps:
        steps("first")
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        steps("second")
    assert signal.getsignal(signal.SIGINT) == before


def test_command_in_the_manifest_builds_the_same_again(checkpoint: Path) -> None:
    import argparse
    import shlex

    from export.options import add_arguments, from_arguments, read_options

    options = BuildOptions(
        backend="tensorrt-rtx", size=(64, 96), batch=(1, 2, 4), gpu=("sm86", "sm89"),
        data=Path("a b"), uncertainty=True, workspace=512,
    )  # fmt: skip
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = shlex.split(shlex.join([str(checkpoint), *options.arguments()]))
    assert read_options(from_arguments(parser.parse_args(words))) == options


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"backand": "onnx"}, "build: unknown key 'backand'; did you mean 'backend'?"),
        ({"images": "many"}, "build: images is 'many'; expected int"),
        ({"batch": [4]}, "build: batch is [4]; expected 3 values, such as [1, 1, 4]"),
        ({"batch": "1:x"}, "--batch is '1:x'; expected MIN:BEST:MAX or N, for example 1:1:4"),
        ({"images": -1}, "--images is -1; expected 0 (all) or more"),
        ({"dla": -2}, "--dla is -2; expected -1 (none) or the number of a core"),
        ({"raw_frames": "9"}, "--raw-frames is '9'; expected HxW in pixels"),
        ({"raw_frames": [0, 9]}, "--raw-frames is 0x9; expected HxW, such as 1080x1920"),
        ({"raw_color": "bgr"}, "--raw-color is 'bgr'; expected one of RGB, BGR; did you mean"),
        ({"backend": "onnx", "hardware_compatible": True}, "--hardware-compatible is for "),
        ({"size": "100x128"}, "--size is 100x128; both must be multiples of 16"),
        ({"size": 64}, "--size is '64'; expected HxW in pixels, for example 256x256"),
        ({"size": "big"}, "--size is 'big'; expected HxW in pixels, for example 256x256"),
    ],
)
def test_wrong_values_from_python_say_what_was_expected(
    values: dict[str, object], said: str, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        build(checkpoint, tmp_path / "x", **values)
    assert str(caught.value).startswith(said) and not (tmp_path / "x").exists()


def test_labels_travel_with_a_bundle(tmp_path: Path) -> None:
    labels = (Label("neoplastic", (230, 159, 0)), Label("non-neoplastic", (0, 158, 115)))
    model = create_model("edge", stage=1, classes=3).eval()
    info = dataclasses.replace(model.info, convention=InputConvention(size=(64, 96)), labels=labels)
    path = save_checkpoint(tmp_path / "three.safetensors", model, info)
    made = build(path, tmp_path / "three.mdsg", backend="onnx", precision="fp32", quiet=True,
                 images=2)  # fmt: skip
    with load_engine(made.path) as engine:
        assert engine.labels == labels and engine.classes == 3
    predictor = Predictor(made.path)
    assert predictor.labels == labels
    mask = predictor(np.zeros((80, 120, 3), np.uint8)).mask
    assert mask.shape == (80, 120) and mask.max() <= 2
