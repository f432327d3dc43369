"""TensorRT 8.6, the only full TensorRT whose libraries stand on PyPI: laid out, built with, timed.

    python -m benchmarks.tensorrt86 prepare FOLDER          # fetches 0.8 GB, needs no GPU
    python -m benchmarks.tensorrt86 run FOLDER --data KVASIR --out RESULTS [--images 120]

``prepare`` unpacks the libraries of the wheel for Python 3.10, which do not depend on Python, under
the bindings for this Python (up to 3.11). The plugin library links cuDNN 8 and cuBLAS 12, which no
layer of ours calls: libraries with those names and no content stand in for them. ``run`` builds
FP16 engines of the packaged network and of ``medisseg-r50``, compares each with PyTorch on the
images (``medisseg build`` refuses what differs) and times it beside PyTorch in one run. Nothing of
this may be redistributed: NVIDIA's licence is in the wheels.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from benchmarks.inference import network_of
from medisseg.checkpoint import save_checkpoint
from medisseg.errors import UserError, command

LIBRARIES, BINDINGS = "tensorrt==8.6.0", "tensorrt-bindings==8.6.1"
NEWEST = (3, 11)
ROOT = Path(__file__).resolve().parent.parent
LOADER = """import ctypes
from pathlib import Path

for name in {names!r}:
    ctypes.CDLL(str(Path(__file__).with_name(name)), ctypes.RTLD_GLOBAL)
from tensorrt_bindings import *  # noqa: E402, F403
from tensorrt_bindings import __version__  # noqa: E402, F401
"""


def prepare(folder: Path) -> None:
    """Make a folder that gives ``import tensorrt`` of version 8.6 when it is on PYTHONPATH.

    Raises:
        UserError: No bindings for this Python, no network, no C compiler, or no space.
    """
    if sys.version_info[:2] > NEWEST:
        raise UserError(
            f"TensorRT 8.6 has bindings up to Python {NEWEST[0]}.{NEWEST[1]}; this is "
            f"{sys.version_info[0]}.{sys.version_info[1]}: use python3.11 -m benchmarks.tensorrt86"
        )
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name a new folder")
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    with tempfile.TemporaryDirectory() as place:
        wheels = [
            fetch(requirement, version, Path(place))
            for requirement, version in ((LIBRARIES, "3.10"), (BINDINGS, own))
        ]
        unpack(*wheels, folder)
    print(f"{folder}: TensorRT 8.6; use it with PYTHONPATH={folder}")


def fetch(requirement: str, python: str, place: Path) -> Path:
    """Download one wheel and return its path."""
    print(f"fetching {requirement} for Python {python}", flush=True)
    into = place / requirement.split("=")[0]
    words = ["--no-deps", "--only-binary=:all:", "--python-version", python, "--dest", str(into)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", *words, requirement],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise UserError(f"{requirement} was not fetched: {done.stderr.strip().splitlines()[-1]}")
    (wheel,) = into.glob("*.whl")
    return wheel


def unpack(libraries: Path, bindings: Path, folder: Path) -> None:
    """Lay out the libraries, what stands in for cuDNN and cuBLAS, and the bindings."""
    home = folder / "tensorrt"
    home.mkdir(parents=True)
    with zipfile.ZipFile(libraries) as archive:
        wanted = [n for n in archive.namelist() if re.match(r"tensorrt/libnv", n)]
        archive.extractall(folder, wanted)
    with zipfile.ZipFile(bindings) as archive:
        wanted = [n for n in archive.namelist() if n.startswith("tensorrt_bindings/")]
        archive.extractall(folder, wanted)
    stand_ins = [stand_in(home, *needed) for needed in missing(home / "libnvinfer_plugin.so.8")]
    late = ("libnvinfer_plugin.so.8", "libnvonnxparser.so.8", "libnvparsers.so.8")
    order = ["libnvinfer.so.8", *stand_ins, *late]
    (home / "__init__.py").write_text(LOADER.format(names=order))


def missing(library: Path) -> list[tuple[str, list[str]]]:
    """Return the cuDNN and cuBLAS libraries that a library links, and the functions it wants."""
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", "--with-symbol-versions", str(library)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    wanted: dict[str, list[str]] = defaultdict(list)
    for function, name in re.findall(r" U (\w+)@(libcu(?:blas|blasLt|dnn)\.so\.\d+)", listed):
        wanted[name].append(function)
    return sorted(wanted.items())


def stand_in(home: Path, name: str, functions: Sequence[str]) -> str:
    """Build a library of functions that do nothing, under versioned names."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise UserError(f"no C compiler to build what stands in for {name}: apt install gcc")
    source, versions = home / f"{name}.c", home / f"{name}.map"
    source.write_text("".join(f"int {function}(void) {{ return 1; }}\n" for function in functions))
    versions.write_text(f"{name} {{ global: {'; '.join(functions)}; local: *; }};\n")
    words = ["-shared", "-fPIC", f"-Wl,-soname,{name}", f"-Wl,--version-script={versions}"]
    subprocess.run([compiler, *words, "-o", str(home / name), str(source)], check=True)
    source.unlink()
    versions.unlink()
    return name


def run(folder: Path, data: Path, out: Path, images: int) -> None:
    """Build, compare and time; each step is a command of ours with 8.6 on its path."""
    path = os.pathsep.join([str(folder.resolve()), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    out.mkdir(parents=True, exist_ok=True)
    build = ["export/build_engine.py", "--backend", "tensorrt", "--precision", "fp16"]
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "medisseg-r50.safetensors"
        network = network_of("medisseg-r50")
        save_checkpoint(whole, network, network.info)
        steps = [
            *(
                [*build, str(model), "--data", str(data), "--images", str(images),
                 "--out", str(out / f"{Path(model).stem}.mdsg")]
                for model in ("edge-polyp", whole)
            ),
            *(
                ["-m", "benchmarks.inference", "--device", "cuda", "--precision", "fp16",
                 "--size", "256x256", "--out", str(out / Path(model).stem), "--checkpoint",
                 str(model)]
                for model in ("edge-polyp", whole)
            ),
        ]  # fmt: skip
        for words in steps:
            print("python", *words, flush=True)
            done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment)
            if done.returncode:
                raise UserError("that step failed; its reason is above")


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the two steps."""
    parser = argparse.ArgumentParser(prog="benchmarks.tensorrt86", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    steps = parser.add_subparsers(dest="step", required=True)
    steps.add_parser("prepare").add_argument("folder", type=Path)
    second = steps.add_parser("run")
    second.add_argument("folder", type=Path)
    second.add_argument("--data", type=Path, required=True, help="images and masks to compare on")
    second.add_argument("--out", type=Path, required=True)
    second.add_argument("--images", type=int, default=120)
    options = parser.parse_args(argv)
    if options.step == "prepare":
        prepare(options.folder)
    else:
        run(options.folder, options.data, options.out, options.images)


if __name__ == "__main__":
    command(main)
