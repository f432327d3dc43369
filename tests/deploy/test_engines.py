"""The runner with real networks: packaged, broken, hostile, and shown pictures without content."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy import run
from medisseg.checkpoint import resolve
from medisseg.errors import UserError


def test_black_white_and_noisy_pictures(lab: Any, tmp_path: Path) -> None:
    """The packaged checkpoint answers finitely to anything, and the same picture the same."""
    draw = np.random.default_rng(3)
    noise = draw.integers(0, 256, (240, 320, 3), np.uint8)
    pictures = [np.full((240, 320, 3), value, np.uint8) for value in (0, 255)] + [noise]
    video = lab.write_video(tmp_path / "v.mp4", [*pictures, *pictures], crf="0")
    out = tmp_path / "run"
    words = [str(video), str(video), "--model", "edge-kvasir", "--no-quality", "--window", "off"]
    assert run.main([*words, "--out", str(out)]) == 0
    result = lab.Run(out)
    result.check_accounts()
    assert result.report["frames"]["processed"] == 12
    for stream in (0, 1):  # both places of a batch
        lines = sorted(result.processed(stream), key=lambda line: line["id"])
        assert all(np.isfinite([line["confidence"], line["flicker"]]).all() for line in lines)
        assert [line["area"] for line in lines] == [line["area"] for line in result.processed(0)]
        assert lines[0]["area"] == 0  # nothing is found in the dark


def another_network(data: bytes) -> bytes:
    """Say that the tensors are those of a larger network."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    described = json.loads(header["__metadata__"]["medisseg"])
    described["options"]["width"] *= 2
    header["__metadata__"]["medisseg"] = json.dumps(described)
    changed = json.dumps(header).encode()
    return struct.pack("<Q", len(changed)) + changed + data[8 + length :]


def pickled(data: bytes) -> bytes:
    """A pickle that would make a file, were it loaded."""
    return b"cposix\nsystem\n(S'touch executed'\ntR."


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "garbage": lambda data: bytes(range(256)) * 40,
    "truncated": lambda data: data[: len(data) // 2],
    "another network": another_network,
    "pickled": pickled,
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_checkpoint_is_one_line(
    name: str, numbered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tmp_path / ("model.pth" if name == "pickled" else "model.safetensors")
    model.write_bytes(BROKEN[name](resolve("edge-kvasir").read_bytes()))
    with pytest.raises(UserError) as error:
        run.main([str(numbered), "--model", str(model), "--out", str(tmp_path / "run")])
    assert "\n" not in str(error.value) and model.name in str(error.value)
    assert not (tmp_path / "run").exists() and not (tmp_path / "executed").exists()
