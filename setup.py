"""Build the frame extension with CMake; everything else is said in pyproject.toml.

MEDISSEG_CUDA=1 makes a missing nvcc fatal, MEDISSEG_CUDA=0 leaves the CUDA part out; otherwise it
is built where nvcc is found.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
CUDA_MODES = {"": "AUTO", "1": "ON", "0": "OFF"}


def fail(message: str) -> None:
    """End the build with one line."""
    sys.exit(f"error: {message}")


def cuda_mode() -> str:
    """Return CMake's value of MEDISSEG_CUDA and say it where the CUDA part is left out."""
    wanted = os.environ.get("MEDISSEG_CUDA", "")
    if wanted not in CUDA_MODES:
        fail(f"MEDISSEG_CUDA is {wanted!r}; expected 1, 0 or nothing")
    named = os.environ.get("CUDACXX")
    nvcc = shutil.which(named or "nvcc")
    if nvcc is None and named is None:
        nvcc = shutil.which("nvcc", path="/usr/local/cuda/bin")
    if wanted != "0" and nvcc is None:
        if wanted == "1":
            fail("MEDISSEG_CUDA=1 but there is no nvcc; install the CUDA toolkit or set CUDACXX")
        print("kernels._frames: no nvcc here, building the CPU part only", file=sys.stderr)
        return "OFF"
    if nvcc is not None:
        os.environ["CUDACXX"] = nvcc
    return CUDA_MODES[wanted]


def check_tools() -> None:
    """A missing compiler or header is one line, not a page of CMake."""
    compiler = os.environ.get("CXX") or next(
        (name for name in ("c++", "g++", "clang++") if shutil.which(name)), None
    )
    if compiler is None or shutil.which(compiler.split()[0]) is None:
        fail(f"no C++ compiler ({compiler or 'c++'}); on Debian or Ubuntu: apt install g++")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        fail("no Python.h for this Python; on Debian or Ubuntu: apt install python3-dev")
    if shutil.which("cmake") is None:
        fail("no cmake; pip install cmake")


class BuildWithCMake(build_ext):
    """Configure and build with CMake, into the checkout (editable) or the wheel."""

    def build_extension(self, ext: Extension) -> None:
        check_tools()
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        # Pip builds with tools in a folder that is gone afterwards; the cache still names them.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        configure = [
            "cmake",
            "-S",
            str(HERE),
            "-B",
            str(build),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DMEDISSEG_CUDA={cuda_mode()}",
        ]
        if shutil.which("ninja"):
            configure += ["-G", "Ninja"]
        for command in (configure, ["cmake", "--build", str(build), "--parallel"]):
            if subprocess.run(command, check=False).returncode:
                fail(f"{' '.join(command[:2])} failed; the compiler's message is above")


setup(ext_modules=[Extension("kernels._frames", [])], cmdclass={"build_ext": BuildWithCMake})
