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
from export.runtime.tensorrt_engine import TensorRTEngine
from export.runtime.torch_tensorrt_engine import TorchTensorRTEngine
from medisseg.device import pick_device
from medisseg.errors import UserError

log = logging.getLogger(__name__)
MODULES = {
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
    "torch-tensorrt": "torch_tensorrt",
}
# Set in the child process that opens a bundle for the first time.
PROBE, PROBE_MODULE = "MEDISSEG_LOAD_PROBE", "export.runtime.load_probe"


def open_tensorrt(bundle: Bundle, part: str, device: str) -> BaseEngine:
    """Open a bundle of the TensorRT family after its version and GPU were checked.

    The first load of a bundle on a machine happens in a child process: a plan is code, and a
    crash in it must not take this process down.

    Raises:
        UserError: Another version or GPU, a damaged part, or a plan that crashed.
    """
    manifest = bundle.manifest
    built = manifest["backend"]
    module = MODULES[built]
    check_version(bundle, module)
    gpu = check_gpu(bundle, device)
    plan = bundle.read(part)
    if not os.environ.get(PROBE):
        probe_load(bundle, gpu, device)
    if built == "torch-tensorrt":
        return TorchTensorRTEngine(plan, bundle.model_info, device)
    return TensorRTEngine(
        module,
        plan,
        bundle.model_info,
        str(manifest["precision"]),
        device,
        version_compatible=bool(manifest.get("version_compatible")),
        dla=int(manifest.get("dla", -1)),
        kernels=_remembered("kernels", bundle, gpu),
    )


def check_version(bundle: Bundle, module: str) -> None:
    """Refuse a plan of another version of TensorRT.

    A plan loads only in the version that made it, or in a newer one if it was built for that.

    Raises:
        UserError: Another version, or the library is not installed.
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


def check_gpu(bundle: Bundle, device: str) -> str:
    """Refuse a plan for another GPU; return the name of the GPU that it will run on.

    Raises:
        UserError: There is no GPU, or one of another compute capability.
    """
    place = pick_device(device)
    if not place.startswith("cuda"):
        raise UserError(f"{bundle.path} needs an NVIDIA GPU; device is {device}")
    manifest = bundle.manifest
    major, minor = torch.cuda.get_device_capability(place)
    here, name = f"sm{major}{minor}", torch.cuda.get_device_name(place)
    built = manifest["compute_capabilities"]
    if here not in built and not (manifest.get("hardware_compatible") and major >= 8):
        raise UserError(
            f"{bundle.path} was built for {', '.join(built)}, this GPU is {here}; {bundle.rebuild}"
        )
    by = manifest.get("gpu_name")
    if by and by != name and not manifest.get("hardware_compatible"):
        log.warning(
            "%s was built on %s, this is %s: the same architecture, but its kernels were chosen "
            "and its memory was planned for the other; %s",
            bundle.path, by, name, bundle.rebuild,
        )  # fmt: skip
    return name


def probe_load(bundle: Bundle, gpu: str, device: str = "auto", seconds: float = 600.0) -> None:
    """Open a bundle in a child process once, and remember that it opened.

    Args:
        bundle: The bundle.
        gpu: Name of the GPU that ``device`` is.
        device: As for ``load_engine``.
        seconds: How long the child may take.

    Raises:
        UserError: The child crashed, answered an error, or took too long.
    """
    marker = _remembered("opened", bundle, gpu)
    if marker.exists():
        return
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    failed = f"{bundle.path}: the engine failed in its load probe"
    command = [sys.executable, "-m", "export.runtime.load_probe", str(bundle.path.absolute())]
    try:
        child = subprocess.run(
            [*command, device, *([str(bundle.trusted_key)] if bundle.trusted_key else [])],
            env={**os.environ, PROBE: "1", "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{failed} (no answer in {seconds:g} s); {bundle.rebuild}") from error
    if child.returncode != 0:
        how = f"signal {-child.returncode}" if child.returncode < 0 else f"code {child.returncode}"
        said = (child.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise UserError(f"{failed} ({how}: {said}); {bundle.rebuild}")
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except OSError as error:
        log.info("the load probe will be repeated next time: %s", error)


def _remembered(what: str, bundle: Bundle, gpu: str) -> Path:
    """Return a file for notes of kind ``what`` about a bundle on a GPU of this machine."""
    which = f"{gpu}-{torch.version.cuda}".replace(" ", "_").replace("/", "_")
    return cache_folder() / f"{what}-{bundle.manifest['digest'][:24]}-{which}"


def cache_folder() -> Path:
    """Return the folder in which this machine notes the bundles that loaded without a crash."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "medisseg"
