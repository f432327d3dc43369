"""Bundles made to do harm: sizes that are lies, fields of other types, foreign signatures."""

from __future__ import annotations

import json
import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export import build_engine, signing
from export.bundle import MANIFEST, SIGNATURE, Bundle, digest, write_bundle
from export.bundle_commands import verified
from export.runtime import load_engine
from medisseg.errors import UserError


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.path, tmp_path / "copy"))


def refused(path: Path, key: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        Bundle.open(path, key).check()
        load_engine(path, trusted_key=key)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    manifest["digest"] = digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_a_zip_that_claims_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.mdsg"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MANIFEST, b" " * (64 << 20))
    assert path.stat().st_size < 100_000
    assert "claims 67108864 bytes, too much for an archive of" in refused(path)


def test_a_zip_that_lies_about_its_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "liar.mdsg"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MANIFEST, b"{}" + b" " * 998)
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02") + 24  # length in the central directory
    data[at : at + 4] = (10).to_bytes(4, "little")
    path.write_bytes(data)
    assert "no whole bundle" in refused(path)


def test_parts_that_are_devices_or_pipes_are_refused(bundle: Bundle, copied: Path) -> None:
    name = next(iter(bundle.manifest["files"]))
    for replacement in (lambda p: p.symlink_to("/dev/zero"), os.mkfifo):
        (copied / name).unlink()
        replacement(copied / name)
        assert "is no regular file" in refused(copied)
    pipe = copied.parent / "pipe.mdsg"
    os.mkfifo(pipe)
    assert "is no regular file" in refused(pipe)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("files", []),
        ("files", {"network.onnx": 1}),
        ("batch", []),
        ("batch", [1, 1, 10**9]),
        ("batch", "1:1:4"),
        ("size", [1 << 20, 1 << 20]),
        ("size", None),
        ("classes", 10**9),
        ("classes", "1"),
        ("threshold", "0.5"),
        ("threshold", 2),
        ("convention", {"size": [64, 96], "other": 1}),
        ("convention", []),
        ("compute_capabilities", [None]),
        ("checkpoint", "edge"),
        ("verification", 1),
        ("command", {"rm": "-rf"}),
        ("backend_version", 1),
        ("raw_frames", {"size": 5}),
        ("raw_frames", {"size": [1, 2], "color": "CMYK"}),
    ],
)
def test_fields_of_another_type_are_one_line(copied: Path, field: str, value: object) -> None:
    rewrite(copied, lambda manifest: manifest.update({field: value}))
    assert "build it again" in refused(copied)


def test_a_deeply_nested_manifest_is_one_line(copied: Path) -> None:
    (copied / MANIFEST).write_text("[" * 200_000)
    assert "is not JSON" in refused(copied)


def test_only_the_named_builder_is_trusted(bundle: Bundle, tmp_path: Path) -> None:
    ours, theirs = (signing.make_key(tmp_path / name) for name in ("ours", "theirs"))
    parts = {name: bundle.read(name) for name in bundle.manifest["files"]}
    facts = {k: v for k, v in bundle.manifest.items() if k not in ("files", "format", "digest")}
    for place in (tmp_path / "folder", tmp_path / "one.mdsg"):
        signed = write_bundle(place, parts, facts, tmp_path / "ours")
        assert Bundle.open(place, ours).trusted_key == ours
        load_engine(place, trusted_key=ours).close()
        assert signed.trusted_key is None  # nobody asked
        assert "is not signed by the owner of" in refused(place, theirs)
    edited = tmp_path / "folder"
    rewrite(edited, lambda manifest: manifest.update(threshold=0.9))
    load_engine(edited).close()  # what an edited and re-digested manifest could do before
    assert "is not signed by the owner of" in refused(edited, ours)
    (edited / SIGNATURE).write_bytes(b"nonsense")
    assert "is not signed by the owner of" in refused(edited, ours)
    (edited / SIGNATURE).unlink()
    assert "is not signed, and --trusted-key" in refused(edited, ours)
    assert "is not signed, and --trusted-key" in refused(bundle.path, ours)


def test_a_checkpoint_is_refused_where_a_signature_is_asked_for(
    checkpoint: Path, tmp_path: Path
) -> None:
    key = signing.make_key(tmp_path / "key")
    with pytest.raises(UserError, match="is a checkpoint, which carries no signature"):
        load_engine(checkpoint, device="cpu", trusted_key=key)


@pytest.mark.parametrize("name", ["/etc/passwd", "/dev/zero", "../x.onnx"])
def test_a_manifest_does_not_choose_what_verify_opens(
    copied: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(copied, lambda manifest: manifest["checkpoint"].update(name=name))
    opened: list[object] = []
    monkeypatch.setattr("medisseg.files.sha256", opened.append)
    with pytest.raises(UserError, match="no checkpoint; give it with --checkpoint"):
        verified(Bundle.open(copied), None)
    assert opened == []


def test_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    private = tmp_path / "key"
    assert build_engine.main(["new-key", str(private)]) == 0
    public = Path(f"{private}.pub")
    assert f"public key: {public}" in capsys.readouterr().out
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert signing.same_owner(private, public)
    no_key = tmp_path / "no-key"
    no_key.write_bytes(public.read_bytes())
    no_key.chmod(0o600)
    for act, message in (
        (lambda: signing.make_key(private), "exists; choose another name"),
        (lambda: signing.private_key(public), "open to other users \\(mode 644\\); chmod 600"),
        (lambda: signing.private_key(no_key), "is no private key"),
        (lambda: signing.public_key(private), "is no public key"),
        (lambda: signing.public_key(tmp_path / "none"), "medisseg build new-key FILE"),
        (lambda: signing.public_key("/dev/zero"), "is no regular file"),
    ):
        with pytest.raises(UserError, match=message):
            act()


def test_wrong_keys_are_said_before_anything_is_built(tmp_path: Path) -> None:
    one, other = (signing.make_key(tmp_path / name) for name in ("one", "other"))
    out = tmp_path / "out"
    for more, message in (
        ({"sign": tmp_path / "none"}, "cannot read the key"),
        ({"trusted_key": one}, "needs --sign"),
        ({"sign": tmp_path / "one", "trusted_key": other}, "does not belong to"),
    ):
        with pytest.raises(UserError, match=message):
            build_engine.build("edge-kvasir", out, backend="onnx", **more)
    assert not out.exists()
