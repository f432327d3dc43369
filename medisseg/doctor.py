"""``medisseg doctor``: what this machine can do, what is missing and what mends it."""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import importlib.util
import json
import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

EXAMPLE = "medisseg doctor --json"


@dataclass(frozen=True)
class Finding:
    """One line of the table: ``found`` is empty when the piece is missing."""

    piece: str
    found: str
    cost: str = ""
    remedy: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``medisseg doctor``."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Print the findings; return 0, since a missing optional piece is no error."""
    findings, warnings = examine(), shadows()
    if args.json:
        print(json.dumps({"pieces": [asdict(f) for f in findings], "warnings": warnings}, indent=2))
        return 0
    from rich.table import Table
    from rich.text import Text

    from medisseg.text import console, plain

    table = Table(title="medisseg doctor", show_lines=False)
    for column in ("piece", "found", "without it", "remedy"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        found = finding.found or Text("missing", "red")
        table.add_row(
            finding.piece,
            found,
            *((finding.cost, finding.remedy) if not finding.found else ("", "")),
        )
    terminal = console()
    terminal.print(table)
    for warning in warnings:
        terminal.print(Text.assemble(("warning:", "yellow"), f" {plain(warning)}"))
    return 0


def examine() -> list[Finding]:
    """Look at every piece once; nothing here starts a GPU or fails when a piece is absent."""
    rtx = "no engine for RTX GPUs is built"
    return [
        Finding(
            "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
        ),
        Finding("PyTorch", _torch(), "nothing runs", "make setup"),
        Finding(
            "CUDA driver",
            _driver(),
            "no GPU is used",
            "apt install nvidia-driver (Ubuntu: ubuntu-drivers install)",
        ),
        Finding("GPUs", _gpus(), "networks run on the CPU", "docs/guide/install.md: RTX, Jetson"),
        Finding(
            "Triton", _version("triton"), "PyTorch's own kernels run on a GPU", "pip install triton"
        ),
        Finding(
            "TensorRT",
            _version("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
            "no engine for Jetson or data-centre GPUs",
            "pip install tensorrt, or JetPack's own",
        ),
        Finding(
            "TensorRT for RTX", _version("tensorrt-rtx"), rtx, "pip install tensorrt-rtx polygraphy"
        ),
        Finding(
            "Torch-TensorRT",
            _version("torch-tensorrt"),
            "--backend torch-tensorrt is refused",
            "pip install torch-tensorrt (needs TensorRT and a CUDA PyTorch)",
        ),
        Finding(
            "ONNX Runtime",
            _version("onnxruntime", "onnxruntime-gpu"),
            "no fallback engine",
            "pip install onnxruntime",
        ),
        Finding(
            "OpenVINO", _version("openvino"), "engines are slower on a CPU", "pip install openvino"
        ),
        Finding(
            "frame extension",
            _extension(),
            "no image can be preprocessed",
            "pip install -e . (needs a C++ compiler)",
        ),
        Finding("video codecs", _codecs(), "no video is read or written", "pip install av"),
        Finding("free disk", f"{shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB here"),
    ]


def shadows() -> list[str]:
    """Name the packages of other distributions that hide ours of the same name."""
    home = Path(__file__).resolve().parent.parent
    found = []
    for name in ("kernels", "export", "deploy"):
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or origin.parent.parent != home:
            found.append(
                f"another package named {name!r} is imported instead of ours ({origin}); "
                f"uninstall it: pip uninstall {name}"
            )
    owners = importlib.metadata.packages_distributions()
    for name in ("kernels", "export", "deploy"):
        others = sorted(set(owners.get(name, [])) - {"medisseg"})
        if others:
            found.append(
                f"{', '.join(others)} also installs a package named {name!r}; "
                f"uninstall it: pip uninstall {others[0]}"
            )
    return found


def _version(*distributions: str) -> str:
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _quiet(look: Callable[[], str]) -> str:
    """A piece that is installed but broken is shown with its own complaint."""
    try:
        return look()
    except Exception as error:
        return f"broken: {str(error).splitlines()[0] if str(error) else type(error).__name__}"


def _torch() -> str:
    """Return the version with its build (+cpu, +cu130), which the package's metadata may lack."""
    if not _version("torch"):
        return ""

    def look() -> str:
        import torch

        return torch.__version__

    return _quiet(look)


def _driver() -> str:
    for library in ("libcuda.so.1", "nvcuda.dll"):
        try:
            cuda = ctypes.CDLL(library)
        except OSError:
            continue
        version = ctypes.c_int()
        if cuda.cuDriverGetVersion(ctypes.byref(version)) == 0:
            return f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    return ""


def _gpus() -> str:
    if not _driver() or not _version("torch"):
        return ""

    def look() -> str:
        import torch

        devices = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
        return ", ".join(
            f"{d.name} (sm{d.major}{d.minor}, {d.total_memory / 2**30:.0f} GiB)" for d in devices
        )

    return _quiet(look)


def _extension() -> str:
    def look() -> str:
        import kernels.frames as frames

        info = frames.build_info()
        gpus = ", ".join(f"sm_{name}" for name in info["cuda_architectures"] if name.isdigit())
        return f"{info['instruction_set']}; " + (f"CUDA for {gpus}" if info["cuda"] else "no CUDA")

    try:
        return look()
    except ImportError:
        return ""


def _codecs() -> str:
    if not _version("av"):
        return ""

    def look() -> str:
        import av

        wanted = ("libx264", "h264", "hevc", "h264_nvenc")
        return f"PyAV {av.__version__}: " + ", ".join(c for c in wanted if c in av.codecs_available)

    return _quiet(look)
