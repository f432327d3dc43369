"""An engine on a real server: the same numbers as here, and every way in which it can be wrong."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from export.bundle import Bundle
from export.runtime import load_engine
from export.runtime.engine import BaseEngine
from export.runtime.triton_address import Address
from export.runtime.triton_client import ServerError, Unreachable
from export.runtime.triton_engine import TritonEngine
from export.triton_repository import Target, write_model
from medisseg.errors import UserError
from medisseg.predictor import Predictor

RNG = np.random.default_rng(3)
IMAGES = RNG.normal(size=(9, 3, 256, 256)).astype(np.float32)
WAYS = [
    ("grpc", ""), ("grpc", "?shared_memory=off"), ("http", ""), ("http", "?shared_memory=off"),
]  # fmt: skip


@pytest.fixture(scope="module")
def here(bundle: Bundle) -> BaseEngine:
    return load_engine(bundle.path)


@pytest.mark.parametrize(("scheme", "more"), WAYS)
def test_the_answer_is_the_same_to_the_bit(
    shared_server, here: BaseEngine, scheme: str, more: str
) -> None:
    with load_engine(shared_server.url(scheme, more)) as there:
        assert (there.convention, there.threshold) == (here.convention, here.threshold)
        assert (there.classes, there.max_batch, there.labels) == (1, 4, here.labels)
        assert re.match(r"Triton [\d.]+ at 127\.0\.0\.1:\d+: edge-polyp version 1 \(", there.name)
        assert (there._memory is not None) == (not more)
        for images in (IMAGES[:1], IMAGES[1:4], IMAGES):  # nine go in parts of four
            answer = there.infer(images)
            assert answer.dtype == np.float32 and answer.flags.writeable
            np.testing.assert_array_equal(answer, here.infer(images))


def test_a_predictor_takes_the_address(shared_server, bundle: Bundle) -> None:
    image = RNG.integers(0, 256, (90, 120, 3), np.uint8)
    there, here = Predictor(shared_server.url())(image), Predictor(bundle.path)(image)
    np.testing.assert_array_equal(there.logits, here.logits)
    assert there.threshold == here.threshold


def test_a_killed_server_is_lost_and_one_that_is_back_is_asked_again(
    serve, here: BaseEngine
) -> None:
    server = serve()
    engine = load_engine(server.url())
    server.kill()
    server.start()  # between two batches: shared memory and connection are made again
    np.testing.assert_array_equal(engine.infer(IMAGES[:1]), here.infer(IMAGES[:1]))
    server.kill()
    began = time.monotonic()
    with pytest.raises(Unreachable, match="cannot be reached now"):
        engine.infer(IMAGES[:1])
    assert time.monotonic() - began < 4  # refused at once: the deadline of 5 s is not waited for
    with pytest.raises(Unreachable, match="is closed or lost"):
        engine.infer(IMAGES[:1])
    server.start()
    with load_engine(server.url()) as again:
        np.testing.assert_array_equal(again.infer(IMAGES[:1]), here.infer(IMAGES[:1]))


@pytest.mark.parametrize(("scheme", "more"), [("grpc", ""), ("http", "&shared_memory=off")])
def test_a_server_that_answers_nothing_meets_the_deadline(serve, scheme: str, more: str) -> None:
    server = serve()
    engine = load_engine(server.url(scheme, f"?deadline_ms=1000{more}"))
    server.pause()
    began = time.monotonic()
    with pytest.raises(Unreachable, match="no answer in 1 s"):
        engine.infer(IMAGES[:1])
    assert 0.9 < time.monotonic() - began < 6
    server.go_on()
    with load_engine(server.url(scheme)) as again:  # what it answers late is nobody's
        assert again.infer(IMAGES[:1]).shape == (1, 1, 256, 256)


def wrong(body: str) -> Callable[[Path], None]:
    """Make the served model do something else with its answers."""

    def change(model: Path) -> None:
        code = f"""
import time
import numpy as np
from export.runtime import triton_model

class TritonPythonModel(triton_model.TritonPythonModel):
    calls = -2  # the warm-up's

    def _answers(self, batch):
        self.calls += 1
        answers = super()._answers(batch)
        if self.calls > 0:
            {body}
        return answers
"""
        (model / "1/model.py").write_text(code)

    return change


def test_a_slow_server_meets_the_deadline(serve) -> None:
    server = serve(wrong("time.sleep(2)"))
    engine = load_engine(server.url(more="?deadline_ms=500"))
    with pytest.raises(Unreachable, match=r"no answer in 0\.5 s"):
        engine.infer(IMAGES[:1])


WRONG = {
    "too few": ("answers = {'logits': answers['logits'][:1]}", "expected FP32"),
    "another shape": ("answers = {'logits': answers['logits'][..., :9]}", "expected FP32"),
    "another type": ("answers = {'logits': answers['logits'].astype(np.float64)}", "logits"),
    "no output": ("answers = {}", "logits"),
    "an error": ("raise RuntimeError('out of memory')", "out of memory"),
}


@pytest.mark.parametrize("more", ["", "?shared_memory=off"])
def test_wrong_answers_are_refused(serve, more: str) -> None:
    lines = [f"if self.calls == {i}: {do}" for i, (do, _) in enumerate(WRONG.values(), start=1)]
    server = serve(wrong("\n            ".join(lines)))
    for name, (_, message) in WRONG.items():
        with (
            load_engine(server.url(more=more)) as engine,
            pytest.raises(UserError, match=message) as raised,
        ):
            print(name, engine.infer(IMAGES[:2]))
        assert "\n" not in str(raised.value).strip()
    with load_engine(server.url(more=more)) as engine:
        assert engine.infer(IMAGES[:2]).shape == (2, 1, 256, 256)


def test_an_answer_that_was_not_written_is_not_the_last_one(
    shared_server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load_engine(shared_server.url()) as engine:
        assert isinstance(engine, TritonEngine)
        engine.infer(IMAGES[:1])
        asked = engine._client.infer

        def unwritten(images, outputs, *rest):
            return asked(images, dict.fromkeys(outputs), *rest)  # sent, and shared memory left

        monkeypatch.setattr(engine._client, "infer", unwritten)
        with pytest.raises(ServerError, match="has 0 bytes; expected 262144"):
            engine.infer(IMAGES[:1])


def test_an_update_is_noticed(serve, bundle: Bundle, tmp_path: Path) -> None:
    from export.bundle import write_bundle

    server = serve()
    engine = load_engine(server.url())
    parts = {name: bundle.read(name) for name in bundle.manifest["files"]}
    known = {k: v for k, v in bundle.manifest.items() if k not in ("files", "digest", "format")}
    newer = write_bundle(tmp_path / "newer", parts, known | {"threshold": 0.7})
    write_model(newer, Target(server.repository, "edge-polyp", "python"))
    server.wait(version="2")
    until = time.monotonic() + 20
    with pytest.raises(UserError, match="edge-polyp"):
        while time.monotonic() < until:  # version 1 answers until it is unloaded, and no other does
            engine.infer(IMAGES[:1])
    with load_engine(server.url()) as again:
        assert again.threshold == 0.7 and "version 2" in again.name
    with pytest.raises(UserError, match="edge-polyp/1"):
        load_engine(server.url(more="/1"))


def test_what_is_no_server_of_ours_is_one_line(serve) -> None:
    def foreign(model: Path) -> None:
        text = (model / "config.pbtxt").read_text()
        (model / "config.pbtxt").write_text(text.replace('key: "medisseg"', 'key: "other"'))

    def damaged(model: Path) -> None:
        text = (model / "config.pbtxt").read_text()
        assert '\\"threshold\\": 0.5' in text
        (model / "config.pbtxt").write_text(
            text.replace('\\"threshold\\": 0.5', '\\"threshold\\": 0.9')
        )

    server = serve(foreign)
    cases = {
        server.url(): "was not written by medisseg",
        server.url().replace("edge-polyp", "nobody"): "no such model, or it is not ready",
        server.url(more="/7"): "edge-polyp/7",
        f"grpc://127.0.0.1:{server.http}/edge-polyp?deadline_ms=3000": "be reached|no answer",
        f"http://127.0.0.1:{server.metrics}/edge-polyp": "not ready|Triton server does",
        f"http://127.0.0.1:{server.grpc}/edge-polyp?deadline_ms=3000": "Triton server does",
        "grpc://127.0.0.1:9/edge-polyp": "cannot be reached now",
        "http://127.0.0.1:9/edge-polyp": "cannot be reached now",
        f"grpcs://127.0.0.1:{server.grpc}/edge-polyp": "cannot be reached now",
        f"https://127.0.0.1:{server.http}/edge-polyp": "cannot be reached|Triton server does",
    }
    for url, message in cases.items():
        with pytest.raises(UserError, match=message) as raised:
            load_engine(url)
        assert "\n" not in str(raised.value), url
    server.kill()
    with pytest.raises(UserError, match="was changed or damaged since it was built"):
        load_engine(serve(damaged).url())


INTERFACES = {
    "huge": ("output", "dims", [1, 1 << 20, 1 << 20], "the model's interface is not ours"),
    "open": ("output", "dims", [1, -1, -1], "the model's interface is not ours"),
    "text": ("input", "data_type", "TYPE_STRING", "the model's interface is not ours"),
    "other classes": ("output", "dims", [3, 256, 256], "gives 3 maps of logits; expected 1"),
}


@pytest.mark.parametrize("case", INTERFACES)
def test_a_servers_word_for_a_size_is_not_believed(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    import json

    side, key, value, message = INTERFACES[case]
    tensors = {
        "input": [{"name": "images", "data_type": "TYPE_FP32", "dims": [3, 256, 256]}],
        "output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": [1, 256, 256]}],
    }
    tensors[side][0][key] = value
    manifest = {"medisseg": {"string_value": json.dumps(bundle.manifest)}}
    config = {**tensors, "max_batch_size": 4, "parameters": manifest}
    answer = (config, {"versions": ["1"]}, "2.51.0")
    monkeypatch.setattr("export.runtime.triton_client.Client.describe", lambda _: answer)
    with pytest.raises(ServerError, match=message):
        load_engine("grpc://127.0.0.1:9/edge-polyp?shared_memory=off")


def test_a_certificate_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("not a certificate")
    with pytest.raises(UserError, match="cannot be read .* expected PEM"):
        load_engine(f"https://127.0.0.1:9/edge-polyp?ca={tmp_path}/ca.pem")


ADDRESSES = {
    "grpc://rack": "does not name a host and a model",
    "grpc:///edge": "does not name a host and a model",
    "grpc://rack/a/b/c": "does not name a host and a model",
    "grpc://rack/edge/newest": "version is 'newest'; expected a number",
    "grpc://rack:99999/edge": "is no server's address",
    "grpc://rack:x/edge": "is no server's address",
    "grpc://me:secret@rack/edge": "no user",
    "grpc://rack/edge?deadline=5": "unknown 'deadline'",
    "grpc://rack/edge?deadline_ms=soon": "deadline_ms is 'soon'",
    "grpc://rack/edge?deadline_ms=0": "deadline_ms is '0'",
    "grpc://rack/edge?ca=/etc/hostname": "goes with grpcs://",
    "grpcs://rack/edge?ca=/absent.pem": "is no file",
    "grpcs://rack/edge?cert=/etc/hostname": "cert and key go together",
    "grpc://rack/edge?shared_memory=maybe": "expected on or off",
}


@pytest.mark.parametrize("text", ADDRESSES)
def test_wrong_addresses_are_one_line(text: str) -> None:
    with pytest.raises(UserError, match=ADDRESSES[text]) as raised:
        load_engine(text)
    assert "\n" not in str(raised.value) and "secret" not in str(raised.value)


def test_addresses_are_read() -> None:
    read = Address.parse("grpcs://[::1]:9001/edge/3?deadline_ms=250")
    assert (read.scheme, read.host, read.port, read.name, read.version) == (
        "grpcs", "::1", 9001, "edge", 3)  # fmt: skip
    assert (read.deadline_ms, read.tls, read.grpc, read.local) == (250.0, True, True, True)
    assert (read.place, str(read)) == ("[::1]:9001", "grpcs://[::1]:9001/edge/3")
    plain = Address.parse("http://gpu-rack/edge")
    assert (plain.port, plain.version, plain.local, plain.grpc) == (8000, 0, False, False)


@pytest.mark.parametrize("option", ["device", "backend", "precision", "threads", "trusted_key"])
def test_what_the_server_decides_is_not_asked_for(option: str) -> None:
    values = {"device": "cpu", "backend": "onnx", "precision": "fp32", "threads": 2}
    with pytest.raises(UserError, match="the server decides"):
        load_engine("grpc://rack/edge", **{option: values.get(option, "key.pub")})
