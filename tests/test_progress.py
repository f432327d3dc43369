"""Progress is shown on a terminal, and nowhere else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COUNT = """
from medisseg.progress import progress
with progress("images [1]", 3) as advance:
    for _ in range(3):
        advance(1)
print("done")
"""


def test_progress_is_silent_without_a_terminal() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", COUNT], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (shown.stdout, shown.stderr) == ("done\n", "")


def test_progress_says_how_many_of_all_on_a_terminal() -> None:
    ours, its = pty.openpty()
    shown = subprocess.run(
        [sys.executable, "-c", COUNT],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=its,
        text=True,
        check=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(its)
    text = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert shown.stdout == "done\n"
    assert "images [1]" in text and "3/3" in text  # a file's name is no markup
