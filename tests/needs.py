"""Parts that a test needs and a machine may lack: a server, a framework of the system."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def lacking(part: str, reason: str) -> NoReturn:
    """Skip a test; fail it where ``MEDISSEG_REQUIRE`` names the part, as CI's script does.

    Args:
        part: Its name there: "triton" or "gstreamer".
        reason: What is not here, and how to get it.
    """
    if part in os.environ.get("MEDISSEG_REQUIRE", "").split(","):
        pytest.fail(f"MEDISSEG_REQUIRE names {part}: {reason}")
    pytest.skip(reason)
