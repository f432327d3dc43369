"""Run the GPU kernels' cases under Triton's interpreter, and on a GPU where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

triton = pytest.importorskip("triton")
CASES = Path(__file__).with_name("triton_cases.py")


def run(**environment: str) -> None:
    command = [sys.executable, "-m", "pytest", str(CASES), "-q", "-x", "-p", "no:cacheprovider"]
    shown = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stdout[-4000:] + shown.stderr[-2000:]


def test_under_the_interpreter() -> None:
    versions = [tuple(map(int, x.__version__.split(".")[:2])) for x in (triton, numpy)]
    if versions[0] < (3, 7) and versions[1] >= (2, 4):
        pytest.skip("Triton 3.6's interpreter cannot take loop bounds from numpy 2.4")
    run(TRITON_INTERPRET="1", OMP_NUM_THREADS="1")


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    run(TRITON_INTERPRET="0")
