"""Files from elsewhere that claim too much, name other files, or lie in the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medisseg.checkpoint import KEY, read_header, resolve
from medisseg.config import load_config
from medisseg.errors import UserError
from medisseg.files import replacing
from medisseg.model.loading import load_checkpoint
from medisseg.untrusted import read_bytes, read_yaml

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(UserError, match="has 5 bytes; expected at most 4"):
        read_bytes(path, 4)
    zeros = tmp_path / "zeros"
    zeros.symlink_to("/dev/zero")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for wrong in (zeros, pipe, tmp_path):
        with pytest.raises(UserError, match="is no regular file"):
            read_bytes(wrong, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "expands to more than 100000 values"),
        ("[" * 20_000, "nested more than 100 levels"),
        ("a: &a [*a]", "nested more than 100 levels"),
        ("a: [", "is not YAML"),
        ("!!python/object/apply:os.system [id]", "is not YAML"),
        (f"threshold: {'1' * 5000}", "is not YAML: a number of 5000 digits"),
        (f"threshold: 0x{'f' * 5000}", "is not YAML: a number of 5002 digits"),
        ("threshold: 2026-13-45", "is not YAML: month must be in 1..12"),
    ],
)
def test_hostile_yaml_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    from deploy import options

    path = tmp_path / "config.yaml"
    path.write_text(text)
    for read in (
        read_yaml,
        load_config,
        lambda path: options.parse(["v.mp4", "--model", "m", "--config", str(path)]),
    ):
        with pytest.raises(UserError, match=message) as error:
            read(path)
        assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_aliases_that_expand_to_little_are_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("a: &a [1, 2]\nb: *a\n")
    assert read_yaml(path) == {"a": [1, 2], "b": [1, 2]}


def test_a_configuration_is_not_its_own_base(tmp_path: Path) -> None:
    path = tmp_path / "self.yaml"
    path.write_text("base: self.yaml\n")
    with pytest.raises(UserError, match=r"self\.yaml is its own base"):
        load_config(path)
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(UserError, match=r"a\.yaml is its own base"):
        load_config(tmp_path / "a.yaml")


def changed(tmp_path: Path, **fields: object) -> Path:
    """A packaged checkpoint with other fields in its header; options are merged."""
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    source = resolve("edge-kvasir")
    with safe_open(source, framework="np") as file:
        header = json.loads(file.metadata()[KEY])
    for name, value in fields.items():
        merge = isinstance(value, dict) and isinstance(header.get(name), dict)
        header[name] = {**header[name], **value} if merge else value
    path = tmp_path / "changed.safetensors"
    save_file(load_file(source), path, {KEY: json.dumps(header)})
    return path


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classes": 10**9}, "classes is 1000000000; expected a whole number from 1 to 256"),
        ({"classes": True}, "classes is True"),
        ({"classes": "1"}, "classes is '1'"),
        ({"stage": 3}, "stage is 3"),
        ({"threshold": "high"}, "cannot read"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"convention": {"size": [16384, 16384]}}, "size is .*16384.*expected at most 4096"),
        ({"convention": []}, "cannot read"),
        ({"architecture": ["edge"]}, "architecture is .*expected text"),
        ({"options": {"width": 10**9}}, "has 1000000000; expected at most 8192"),
        ({"options": {"width": 8192}}, "cannot be made|is the checkpoint of another network"),
        ({"options": {"encoder_weights": "/etc/passwd"}}, "options name 'encoder_weights'"),
        ({"options": {"stage": 1}}, "options name 'stage'"),
        ({"options": {"nothing": 1}}, "cannot be made|unknown"),
    ],
)
def test_a_header_that_claims_too_much(
    tmp_path: Path, fields: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    path = changed(tmp_path, **fields)
    monkeypatch.setattr(
        "medisseg.model.create.load_encoder_weights", lambda *given: opened.append(str(given))
    )
    with pytest.raises(UserError, match=message) as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value) and opened == []


def test_a_header_as_it_was_is_read(tmp_path: Path) -> None:
    assert read_header(changed(tmp_path)) == read_header("edge-kvasir")


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    """Whoever may write into the folder lays links under every name that can be guessed."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("out.json", f".out.json.{os.getpid()}.part", "out.json.part", ".out.json.part"):
        (tmp_path / name).symlink_to(victim)
    with replacing(tmp_path / "out.json") as place:
        place.write_text("{}")
    assert victim.read_text() == "precious" and not (tmp_path / "out.json").is_symlink()
    assert (tmp_path / "out.json").read_text() == "{}"
    assert len(list(tmp_path.iterdir())) == 5  # nothing of its own is left behind


def test_a_build_lock_truncates_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from export.bundle import building

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with building(tmp_path / "bundle"):
        (lock,) = (tmp_path / "cache/medisseg/locks").iterdir()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    lock.unlink()
    lock.symlink_to(victim)
    refused = pytest.raises(UserError, match="cannot open the lock .*; remove it")
    with refused, building(tmp_path / "bundle"):
        pass
    assert victim.read_text() == "precious"


def test_memory_stays_small_for_hostile_yaml(tmp_path: Path) -> None:
    path = tmp_path / "laughs.yaml"
    path.write_text(LAUGHS)
    code = (
        "import re, sys; from medisseg.untrusted import read_yaml\n"
        "try: read_yaml(sys.argv[1])\nexcept Exception as error: print(error)\n"
        "print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    message, kilobytes = shown.stdout.splitlines()
    assert "expands to more than" in message and int(kilobytes) < 200_000


def test_float_arrays_are_no_option() -> None:
    from medisseg.checkpoint import Checkpoint
    from medisseg.convention import InputConvention

    info = Checkpoint("edge", 1, 1, InputConvention(), {"widths": [np.inf]})
    with pytest.raises(ValueError, match="expected at most"):
        info.check()
