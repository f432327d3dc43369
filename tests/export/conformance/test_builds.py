"""TensorRT 11.4's real bindings build every combination of options, over TensorRT for RTX."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from libraries import LAST_11, python

HERE = Path(__file__).parent
BATCHES = ["(1, 1, 1)", "(1, 1, 4)", "(2, 3, 8)"]


def built(place: Path, out: Path, *words: str) -> dict[str, Any]:
    done = python(place, str(HERE / "builds.py"), str(out), *words, timeout=1700)
    assert done.returncode == 0, f"after {done.stdout.splitlines()[-1:]}: {done.stderr[-2000:]}"
    return json.loads(out.read_text())


def halved(found: dict[str, Any]) -> bool:
    """Whether every convolution of the graph was built in FP16."""
    return bool(found["convolutions"] == {"FP16": found["graph"]})


@pytest.fixture(scope="module")
def cases(places: Callable[..., Path], tmp_path_factory: Any) -> dict[str, Any]:
    return built(places(LAST_11, True), tmp_path_factory.mktemp("builds") / "cases.json")


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", ["fp16", "bf16", "fp32", "int8"])
def test_precision_and_batch(cases: dict[str, Any], kind: str, batch: str) -> None:
    found = cases[f"{kind} {batch}"]
    count = found["graph"]
    assert count > 6 and sum(found["convolutions"].values()) == count
    if kind == "int8":  # the logits are too thin for it
        assert found["convolutions"]["INT8"] >= 5 and found["convolutions"]["FP16"] >= 1
        assert set(found["convolutions"]) == {"INT8", "FP16"}
    else:
        assert found["convolutions"] == {kind.upper(): count}, "every convolution was seen"
    assert not found["tf32"], "float32 would be multiplied with 10 bits"
    assert found["backend_version"] == LAST_11
    low, best, high = re.findall(r"\d+", batch)
    shapes = f"MinShape: [{low},3,32,48], OptShape: [{best},3,32,48], MaxShape: [{high},3,32,48]"
    assert shapes in found["profile"]
    assert found["scratch_mb"] > 0 and sum(found["kernels"].values()) > 10


def test_options_reach_the_builder(cases: dict[str, Any]) -> None:
    assert cases["workspace"]["workspace"] == 64 << 20
    assert cases["fp16 (1, 1, 4)"]["workspace"] != 64 << 20
    for turn in ("written", "read"):
        assert halved(cases[f"timings {turn}"])
    assert halved(cases["hardware"])


def test_raw_frames_and_uncertainty(cases: dict[str, Any]) -> None:
    for color in ("RGB", "BGR"):
        found = cases[f"frames {color}"]
        assert found["inputs"] == [["frames", "UINT8"]] and halved(found)
        assert found["outputs"] == [["mask", "UINT8"], ["logits", "FLOAT"]]
    assert cases["uncertainty"]["outputs"] == [["logits", "FLOAT"], ["uncertainty", "FLOAT"]]


def test_islands_stay_in_float32(cases: dict[str, Any]) -> None:
    found = cases["fp32_nodes"]
    assert found["convolutions"] == {"FP16": found["graph"] - 2, "FP32": 2}
    # Its own casts stand beside it: fused, with float32 sums. What it reads and gives is 16 bits.
    assert halved(cases["island alone"])
    assert "had to stay in float32" in cases["fp32_nodes lost"]["refused"]


@pytest.mark.parametrize(
    "name, said",
    [
        ("version", "tensorrt-lean"),
        ("dla", "has no DLA; use TensorRT up to 10.7"),
        ("gpu", "builds for the GPU it runs on"),
        ("halved", "fp16 was asked for, but of"),
    ],
)
def test_what_cannot_be_built_is_refused(cases: dict[str, Any], name: str, said: str) -> None:
    assert said in cases[name]["refused"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["edge", "medisseg-r50"])
def test_presets(places: Callable[..., Path], tmp_path: Path, name: str) -> None:
    found = built(places(LAST_11, True), tmp_path / "preset.json", name)[name]
    assert found["convolutions"] == {"FP16": found["graph"]} and found["graph"] > 100
    assert found["kernels"]["FP16"] / sum(found["kernels"].values()) > 0.98
