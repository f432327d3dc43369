"""What every command shares: help, exit codes, whole files, the input convention, set-up."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from medisseg import cli, doctor
from medisseg.checkpoint import Checkpoint, save_checkpoint
from medisseg.convention import InputConvention
from medisseg.errors import UserError, command
from medisseg.files import replacing, sha256

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", [*cli.COMMANDS, "build", "run"])
def test_help_of_every_command_shows_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: medisseg {name} " in shown
    assert re.search(rf"examples?:\n  medisseg {name}", shown)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trian"], "invalid choice: 'trian' .*did you mean train[?]"),
        (["train", "edge", "--sed", "3"], "arguments: --sed 3; did you mean --seed[?]"),
        (["build", "edge-polyp", "--presicion", "fp16"], "did you mean --precision[?]"),
        (["evaluate", "edge-polyp"], "required: --data"),
        (["phantom", "out", "--frames", "many"], "--frames: invalid int value: 'many'"),
    ],
)
def test_a_wrong_word_is_answered_in_one_line(words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        cli.main(words)
    assert "\n" not in str(error.value)


def test_commands_of_other_packages_come_with_the_installation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "\n  build  " in (shown := capsys.readouterr().out) and "\n  run  " in shown

    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.distribution", absent)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: ())
    with pytest.raises(UserError, match="medisseg run comes with the installed package"):
        cli.main(["run", "video.mp4"])


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        (None, 0, ""),
        (UserError("got x; expected y"), 2, "error: got x; expected y\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
)
def test_exit_codes(raised, code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    def main(_: object) -> int:
        if raised:
            raise raised
        return 0

    with pytest.raises(SystemExit) as ended:
        command(main)
    assert ended.value.code == code and capsys.readouterr().err == says


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    reported = json.loads(capsys.readouterr().out)
    found = {piece["piece"]: piece["found"] for piece in reported["pieces"]}
    assert found["PyTorch"] == torch.__version__ and "libx264" in found["video codecs"]
    monkeypatch.setattr(doctor, "_version", lambda *_: "")
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "missing" in shown and "make setup" in shown


def test_doctor_warns_of_a_package_that_hides_ours(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").touch()
    owner = tmp_path / "other-1.dist-info"
    owner.mkdir()
    (owner / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    (owner / "top_level.txt").write_text("kernels\n")
    shown = subprocess.run(
        [sys.executable, "-m", "medisseg", "doctor", "--json"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = json.loads(shown.stdout)["warnings"]
    assert "'kernels' is imported instead of ours" in first and str(tmp_path) in first
    assert second.startswith("other also installs") and "pip uninstall other" in second


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b.txt"
    with replacing(target) as temporary:
        temporary.write_text("first")
    assert target.read_text() == "first"
    assert sha256(target) == "a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e"
    with pytest.raises(RuntimeError), replacing(target) as temporary:
        temporary.write_text("sec")
        raise RuntimeError
    assert target.read_text() == "first" and os.listdir(target.parent) == ["b.txt"]
    with replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("")
    with replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "newer").write_text("")
    assert os.listdir(tmp_path / "folder") == ["newer"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)])
    if mounted.returncode:
        pytest.skip("no right to mount here")
    try:
        with pytest.raises(UserError, match="no space left"), replacing(disk / "x") as temporary:
            temporary.write_bytes(bytes(1 << 20))
        with pytest.raises(UserError, match="no space left"):
            save_checkpoint(
                disk / "x",
                {"weight": torch.zeros(1 << 18)},
                Checkpoint("edge", 2, 1, InputConvention()),
            )
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_convention_is_torchs_resize(color: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (70, 50, 3), np.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    convention = InputConvention(color=color, mean=mean, std=std, size=(32, 48))
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    expected = F.interpolate(pixels, (32, 48), mode="bilinear", align_corners=False)[0]
    expected = expected.flip(0) if color == "BGR" else expected
    expected = (expected - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    ours = torch.from_numpy(convention.preprocess(image))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    assert InputConvention.from_dict(json.loads(json.dumps(convention.to_dict()))) == convention


def test_letterbox_is_undone() -> None:
    convention = InputConvention(size=(64, 64), resize="letterbox")
    top, left, height, width = convention.content((50, 200))
    assert (top, left, height, width) == (24, 0, 16, 64)
    logits = np.full((1, 64, 64), -9.0, np.float32)
    logits[:, top : top + height, left : left + width // 2] = 9
    frame = convention.restore(logits, (50, 200))
    assert frame.shape == (1, 50, 200)
    assert (frame[:, :, :95] > 0).all() and (frame[:, :, 105:] < 0).all()


@pytest.mark.parametrize("size", [(250, 256), (0, 16), (16,)])
def test_convention_refuses_sizes(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        InputConvention(size=size)  # type: ignore[arg-type]


BUILD_LOCK = ROOT / "tools" / "build-requirements.lock"


def setup(tmp_path: Path, python: str, **environment: str) -> subprocess.CompletedProcess[str]:
    script = ROOT / "tools" / "setup.sh"
    command = ["bash", str(script), python, str(tmp_path / "venv")]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


def test_set_up_says_what_is_missing(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2\nexit 1\n')
    old.chmod(0o755)
    for shown, says in (
        (setup(tmp_path, "no-such-python"), "no no-such-python here"),
        (setup(tmp_path, str(old)), "Python 3.9.2 is not supported"),
        (setup(tmp_path, sys.executable, CXX="no-such-compiler"), "no C++ compiler"),
    ):
        lines = shown.stderr.strip().splitlines()
        assert shown.returncode == 2 and len(lines) == 1 and says in lines[0]
    assert not (tmp_path / "venv").exists()


def test_set_up_goes_on_from_one_that_was_killed(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (tmp_path / "no-wheels").mkdir()
    offline = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path / "no-wheels"),
    }
    shown = setup(tmp_path, sys.executable, **offline, CXX="c++ -O2")
    lines = shown.stderr.strip().splitlines()
    assert shown.returncode == 2 and len(lines) == 1 and "could not be fetched" in lines[0]
    assert (venv / "bin" / "pip").is_file()  # what stood stays


def test_set_up_refuses_a_wheel_that_is_not_the_pinned_one(tmp_path: Path) -> None:
    venv, wheels = tmp_path / "venv", tmp_path / "wheels"
    wheels.mkdir()
    for pin in re.findall(r"^(\w+)==([\d.]+)", BUILD_LOCK.read_text(), re.MULTILINE):
        (wheels / f"{'-'.join(pin)}-py3-none-any.whl").write_bytes(b"another program")
    offline = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
    }
    shown = setup(tmp_path, sys.executable, **offline, CXX="c++ -O2")
    lines = shown.stderr.strip().splitlines()
    assert shown.returncode == 2 and len(lines) == 1 and "SHA-256 differs" in lines[0]
    assert lines[0].startswith("error: cmake==") and not venv.exists()
