"""The audit record of a run: UTC, host, versions, and SHA-256 of weights and configuration."""

from __future__ import annotations

import hashlib
import json
import platform
import socket
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

import medisseg
from medisseg.errors import UserError


def utc_now() -> str:
    """Return the moment in UTC to the millisecond, as in 2026-11-28T11:52:07.125Z (ISO 8601)."""
    return utc_of(time.monotonic())


def utc_of(moment: float) -> str:
    """Return the UTC of a moment of the monotonic clock, in seconds; as :func:`utc_now`."""
    ago = time.monotonic() - moment
    then = datetime.fromtimestamp(time.time() - ago, timezone.utc)
    return then.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def identity(model: str, options: Mapping[str, object]) -> dict[str, object]:
    """Return what a report says about where and with what a run was made.

    Args:
        model: What ``--model`` named.
        options: Every option of the run as JSON-ready values, defaults included.

    Returns:
        ``host``, ``time_zone``, ``versions``, ``model_sha256`` (see :func:`model_digests`) and
        ``configuration_sha256``: of the options as JSON with sorted keys.
    """
    text = json.dumps(options, sort_keys=True)
    return {
        "host": socket.gethostname(),
        "time_zone": datetime.now().astimezone().strftime("%Z (UTC%z)"),
        "versions": {
            "medisseg": medisseg.__version__,
            "python": platform.python_version(),
            "system": platform.platform(),
        },
        "model_sha256": model_digests(model),
        "configuration_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def model_digests(model: str) -> dict[str, str]:
    """Return SHA-256 digests by what they are of; empty for a model that is no file.

    ``checkpoint``: the weights' file. Of a bundle: ``checkpoint``, that it was built from;
    ``manifest``, which holds the digest of every part; ``bundle``, where it is one file.
    """
    from export.bundle import Bundle
    from medisseg.checkpoint import is_bundle, resolve
    from medisseg.files import sha256

    try:
        if not is_bundle(model):
            return {"checkpoint": sha256(resolve(model))}
        bundle = Bundle.open(model)
        digests = {
            "checkpoint": str(bundle.manifest["checkpoint"].get("sha256", "")),
            "manifest": str(bundle.manifest["digest"]),
        }
        return digests | ({"bundle": sha256(model)} if Path(model).is_file() else {})
    except (OSError, UserError):
        return {}
