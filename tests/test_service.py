"""The systemd unit that SECURITY.md names, checked by systemd's own tools."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).resolve().parents[1] / "tools" / "medisseg-run.service"
pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit as an instance, with a command that exists here."""
    path = tmp_path / "medisseg-run@theatre1.service"
    path.write_text(UNIT.read_text().replace("/usr/local/bin/medisseg", "/bin/true"))
    return path


def analyze(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *map(str, words)], capture_output=True, text=True, timeout=60
    )


def test_the_unit_is_valid(installed: Path) -> None:
    checked = analyze("verify", installed)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_unit_has_little_privilege(installed: Path) -> None:
    rated = analyze("security", "--offline=true", installed).stdout
    level = re.search(r"Overall exposure level for \S+: ([\d.]+)", rated)
    assert level is not None and float(level[1]) <= 1.7
