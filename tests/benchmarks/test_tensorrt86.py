"""TensorRT 8.6 is laid out from its wheels; the wheels here are small stand-ins."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks import tensorrt86
from medisseg.errors import UserError

pytestmark = pytest.mark.skipif(
    not (shutil.which("gcc") and shutil.which("nm")), reason="no C compiler or no binutils"
)


def library(home: Path, name: str, code: str, *links: str) -> Path:
    (home / "code.c").write_text(code)
    words = ["-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(home / name), "code.c"]
    subprocess.run(["gcc", *words, *links], cwd=home, check=True)
    return home / name


@pytest.fixture
def wheels(tmp_path: Path) -> tuple[Path, Path]:
    """The wheel with libraries, whose plugins want cuDNN and cuBLAS, and that with bindings."""
    home = tmp_path / "build"
    home.mkdir()
    tensorrt86.stand_in(home, "libcudnn.so.8", ["cudnnCreate", "cudnnDestroy"])
    tensorrt86.stand_in(home, "libcublas.so.12", ["cublasCreate_v2"])
    made = [
        library(home, "libnvinfer.so.8", "int infer(void) { return 86; }"),
        library(
            home,
            "libnvinfer_plugin.so.8",
            "int cudnnCreate(void); int cudnnDestroy(void); int cublasCreate_v2(void);"
            "int plugin(void) { return cudnnCreate() + cudnnDestroy() + cublasCreate_v2(); }",
            "./libcudnn.so.8",
            "./libcublas.so.12",
        ),
        library(home, "libnvonnxparser.so.8", "int parse(void) { return 0; }"),
        library(home, "libnvparsers.so.8", "int parsers(void) { return 0; }"),
    ]
    libraries, bindings = tmp_path / "tensorrt.whl", tmp_path / "bindings.whl"
    with zipfile.ZipFile(libraries, "w") as archive:
        for path in made:
            archive.write(path, f"tensorrt/{path.name}")
        archive.writestr("tensorrt/tensorrt.so", b"for another Python")
    with zipfile.ZipFile(bindings, "w") as archive:
        archive.writestr("tensorrt_bindings/__init__.py", "__version__ = '8.6.1'\nBuilder = 1\n")
    return libraries, bindings


def test_libraries_are_loaded_over_stand_ins_for_what_is_not_there(
    wheels: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "trt"
    tensorrt86.unpack(*wheels, folder)
    plugin = folder / "tensorrt" / "libnvinfer_plugin.so.8"
    assert tensorrt86.missing(plugin) == [
        ("libcublas.so.12", ["cublasCreate_v2"]),
        ("libcudnn.so.8", ["cudnnCreate", "cudnnDestroy"]),
    ]
    assert not (folder / "tensorrt" / "tensorrt.so").exists()
    code = (
        "import ctypes, tensorrt\n"
        "print(tensorrt.__version__, tensorrt.Builder, ctypes.CDLL('libnvinfer.so.8').infer(),"
        " ctypes.CDLL('libnvinfer_plugin.so.8').plugin())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )  # fmt: skip
    assert done.stdout.split() == ["8.6.1", "1", "86", "3"], done.stderr


def test_a_python_without_bindings_and_a_full_folder_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.txt").write_text("")
    if sys.version_info[:2] <= tensorrt86.NEWEST:
        with pytest.raises(UserError, match="is not empty"):
            tensorrt86.prepare(tmp_path)
    monkeypatch.setattr(tensorrt86, "NEWEST", (3, 9))
    with pytest.raises(UserError, match="bindings up to Python 3.9"):
        tensorrt86.prepare(tmp_path / "new")
