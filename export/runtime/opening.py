"""Opening a bundle of the TensorRT family: version, GPU, and a first load in a child process."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import torch

from export.bundle import Bundle
from export.runtime.engine import BaseEngine
from export.runtime.tensorrt_engine import TensorRTEngine, TorchTensorRTEngine
from medisseg.device import pick_device
from medisseg.errors import UserError

log = logging.getLogger(__name__)
MODULES = {
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
    "torch-tensorrt": "torch_tensorrt",
}
# Set in the child process that opens a bundle for the first time.
TRIAL = "MEDISSEG_TRIAL_LOAD"


def open_tensorrt(bundle: Bundle, part: str, device: str) -> BaseEngine:
    """Open a bundle of the TensorRT family after its version and GPU were checked.

    The first load of a bundle on a machine happens in a child process: a plan is code, and a
    crash in it must not take this process down.

    Raises:
        UserError: Another version or GPU, a damaged part, or a plan that crashed.
    """
    built = bundle.manifest["backend"]
    module = MODULES[built]
    check_version(bundle, module)
    check_gpu(bundle, device)
    plan = bundle.read(part)
    if not os.environ.get(TRIAL):
        try_in_child(bundle)
    if built == "torch-tensorrt":
        return TorchTensorRTEngine(plan, bundle.traits)
    precision, newer = (bundle.manifest.get(k) for k in ("precision", "version_compatible"))
    return TensorRTEngine(module, plan, bundle.traits, str(precision), device, bool(newer))


def check_version(bundle: Bundle, module: str) -> None:
    """Refuse a plan of another version.

    A plan loads only in the version that made it, or in a newer one if it was built for that.
    """
    try:
        found = importlib.import_module(module).__version__
    except ImportError as error:
        raise UserError(
            f"{bundle.path} needs the Python module {module} ({error}); install it"
        ) from error
    wanted = bundle.manifest["backend_version"]
    newer = bundle.manifest.get("version_compatible") and _order(found) > _order(wanted)
    if found != wanted and not newer:
        raise UserError(
            f"{bundle.path} was built with {module} {wanted}, here is {found}; {bundle.rebuild}"
        )


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def check_gpu(bundle: Bundle, device: str) -> None:
    """Refuse a plan for another GPU.

    Raises:
        UserError: There is no GPU, or one of another compute capability.
    """
    place = pick_device(device)
    if not place.startswith("cuda"):
        raise UserError(f"{bundle.path} needs an NVIDIA GPU; device is {device}")
    major, minor = torch.cuda.get_device_capability(place)
    here = f"sm{major}{minor}"
    built = bundle.manifest["compute_capabilities"]
    if here not in built and not (bundle.manifest.get("hardware_compatible") and major >= 8):
        raise UserError(
            f"{bundle.path} was built for {', '.join(built)}, this GPU is {here}; {bundle.rebuild}"
        )


def try_in_child(bundle: Bundle, seconds: float = 600.0) -> None:
    """Open a bundle in a child process once, and remember that it opened.

    Raises:
        UserError: The child crashed or answered an error.
    """
    capability = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    gpu = "none" if capability is None else f"{capability.name}-{torch.version.cuda}"
    marker = cache_folder() / f"opened-{bundle.manifest['digest'][:24]}-{gpu.replace(' ', '_')}"
    if marker.exists():
        return
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    child = subprocess.run(
        [sys.executable, "-m", "export.runtime.trial", str(bundle.path.absolute())],
        env={**os.environ, TRIAL: "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    if child.returncode != 0:
        how = f"signal {-child.returncode}" if child.returncode < 0 else f"code {child.returncode}"
        said = (child.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise UserError(
            f"{bundle.path}: the engine failed in its trial load ({how}: {said}); {bundle.rebuild}"
        )
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except OSError as error:
        log.info("the trial load will be repeated next time: %s", error)


def cache_folder() -> Path:
    """Return where this machine remembers what it opened."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "medisseg"
