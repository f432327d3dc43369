"""Bundles: whole or refused, before anything in them is deserialised."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from export.bundle import Bundle, building, digest, write_bundle
from export.runtime import load_engine
from medisseg.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
KEYS = (
    "files backend backend_version precision fp16_share compute_capabilities size batch threshold "
    "verification"
)


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.path, tmp_path / "copy of; $(bundle) 'x'"))


@pytest.fixture(scope="module")
def zipped(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = {name: bundle.read(name) for name in bundle.manifest["files"]}
    facts = {k: v for k, v in bundle.manifest.items() if k not in ("files", "format", "digest")}
    return write_bundle(tmp_path_factory.mktemp("zip") / "tiny.mdsg", parts, facts).path


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        bundle = Bundle.open(path)
        bundle.check()
        load_engine(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None], sign: bool = True) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    if sign:
        manifest["digest"] = digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_manifest_has_the_promised_keys(bundle: Bundle) -> None:
    assert not set(KEYS.split()) - set(bundle.manifest)
    assert {"max_abs", "p999_abs", "dice_agreement", "images"} <= set(
        bundle.manifest["verification"]
    )
    assert bundle.manifest["size"] == [64, 96] and bundle.manifest["batch"] == [1, 1, 4]
    assert bundle.manifest["verification"]["images"] == 3
    bundle.check()


@pytest.mark.parametrize("tenth", range(10))
def test_truncated_is_refused(copied: Path, zipped: Path, tmp_path: Path, tenth: int) -> None:
    content = zipped.read_bytes()
    short = tmp_path / "short.mdsg"
    short.write_bytes(content[: len(content) * tenth // 10])
    refused(short)
    for name in ("network.onnx", "manifest.json"):
        whole = (copied / name).read_bytes()
        (copied / name).write_bytes(whole[: len(whole) * tenth // 10])
        refused(copied)
        (copied / name).write_bytes(whole)


def test_one_changed_byte_is_refused(copied: Path) -> None:
    for name in ("network.onnx", "manifest.json"):
        whole = bytearray((copied / name).read_bytes())
        for at in (0, len(whole) // 3, len(whole) - 2):
            changed = bytearray(whole)
            changed[at] ^= 1
            (copied / name).write_bytes(changed)
            refused(copied)
        (copied / name).write_bytes(whole)


def test_changed_bytes_of_a_zip_change_nothing_or_are_refused(zipped: Path, tmp_path: Path) -> None:
    content = zipped.read_bytes()
    names = zipfile.ZipFile(zipped).namelist()
    before = {name: zipfile.ZipFile(zipped).read(name) for name in names}
    end = len(content)
    for at in [*range(0, end, end // 23), *range(end - 200, end, 3)]:
        changed = bytearray(content)
        changed[at] ^= 0x10
        path = tmp_path / "changed.mdsg"
        path.write_bytes(changed)
        try:
            bundle = Bundle.open(path)
            parts = {name: bundle.read(name) for name in bundle.manifest["files"]}
        except UserError:
            continue
        assert all(before[name] == part for name, part in parts.items()), at


def test_empty_missing_and_foreign_are_refused(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.mdsg").touch()
    assert "build one with" in refused(tmp_path / "empty")
    refused(tmp_path / "empty.mdsg")
    refused(tmp_path / "nowhere.mdsg")
    (copied / "network.onnx").unlink()
    refused(copied)


def test_parts_of_another_network_are_refused(copied: Path, tmp_path: Path) -> None:
    (copied / "network.onnx").write_bytes(b"another network")
    message = refused(copied)
    assert "not what was built" in message and "medisseg build" in message


def test_edited_manifest_is_refused(copied: Path) -> None:
    def widen(manifest: dict[str, Any]) -> None:
        manifest["threshold"] = 0.9

    rewrite(copied, widen, sign=False)
    assert "changed or damaged" in refused(copied)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("format", 2, "bundle format 2"),
        ("backend", "caffe", "lacks"),
        ("files", {"../network.onnx": "0"}, "outside"),
    ],
)
def test_impossible_manifests_are_refused(copied: Path, key: str, value: Any, said: str) -> None:
    rewrite(copied, lambda manifest: manifest.update({key: value}))
    assert said in refused(copied)


def test_engine_of_a_gpu_is_refused_without_one(copied: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    rewrite(copied, lambda m: m.update(backend="tensorrt-rtx", compute_capabilities=["sm89"]))
    assert "needs an NVIDIA GPU" in refused(copied)


def test_another_version_is_refused_before_anything_is_read(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    from export.runtime import opening

    rewrite(copied, lambda m: m.update(backend="tensorrt-rtx", backend_version="1.0.0"))
    bundle = Bundle.open(copied)
    monkeypatch.setattr(Bundle, "read", lambda *_: pytest.fail("read before the check"))
    with pytest.raises(UserError, match=r"built with tensorrt_rtx 1\.0\.0.*build it again"):
        opening.open_tensorrt(bundle, "network.engine", "auto")


def test_version_and_gpu_must_be_those_that_the_plan_was_built_for(
    copied: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    from export.runtime import opening

    found = pytest.importorskip("tensorrt_rtx").__version__
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "RTX 3060")

    def opened(**changes: Any) -> None:
        about = {"backend": "tensorrt-rtx", "backend_version": found, "version_compatible": False}
        about |= {"compute_capabilities": ["sm86"], "hardware_compatible": False}
        rewrite(copied, lambda m: m.update(about | changes))
        bundle = Bundle.open(copied)
        opening.check_version(bundle, "tensorrt_rtx")
        opening.check_gpu(bundle, "auto")

    opened()
    opened(backend_version="1.0.0.1", version_compatible=True)
    opened(compute_capabilities=["sm80"], hardware_compatible=True)
    opened(gpu_name="RTX 3060")
    assert not caplog.text
    opened(gpu_name="RTX 3090")
    assert "built on RTX 3090, this is RTX 3060" in caplog.text
    for changes in (
        {"backend_version": "1.0.0.1"},
        {"backend_version": "99.0.0.1", "version_compatible": True},
        {"compute_capabilities": ["sm89"]},
    ):
        with pytest.raises(UserError, match="build it again: medisseg build"):
            opened(**changes)


def test_what_is_no_bundle_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "keep").write_text("mine")
    with pytest.raises(UserError, match="no bundle"):
        write_bundle(tmp_path, {}, {})
    assert (tmp_path / "keep").read_text() == "mine"


HOLD = """
import sys, time
sys.path.insert(0, sys.argv[1])
from export.bundle import building
with building(sys.argv[2]):
    print("held", flush=True)
    time.sleep(float(sys.argv[3]))
"""


@contextlib.contextmanager
def held(path: Path, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """Hold the lock of ``path`` in another process."""
    words = [sys.executable, "-c", HOLD, str(ROOT), str(path), str(seconds)]
    other = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    try:
        yield other
    finally:
        other.kill()
        other.wait()
        other.stdout.close()


def test_second_build_waits_for_the_first(tmp_path: Path) -> None:
    with held(tmp_path / "x", 1.5):
        begun = time.perf_counter()
        with building(tmp_path / "x"):
            assert time.perf_counter() - begun > 0.8


def test_killed_holder_frees_the_lock(tmp_path: Path) -> None:
    with held(tmp_path / "x", 600) as other:
        other.kill()
        with building(tmp_path / "x"):
            pass
