"""Run the GPU kernels' cases under Triton's interpreter, and on a GPU where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
CASES = Path(__file__).with_name("triton_cases.py")


def run(**environment: str) -> None:
    command = [sys.executable, "-m", "pytest", str(CASES), "-q", "-x", "-p", "no:cacheprovider"]
    shown = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stdout[-4000:] + shown.stderr[-2000:]


def test_under_the_interpreter() -> None:
    run(TRITON_INTERPRET="1", OMP_NUM_THREADS="1")


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    run(TRITON_INTERPRET="0")
