"""TensorRT's real Python bindings without TensorRT: three small libraries stand in for its own.

The bindings link nine C functions. Libraries that answer null import them as on a machine without a
driver; libraries that forward the nine to TensorRT for RTX, which builds without a GPU, let the
bindings of TensorRT 11 build real engines. The bindings are wheels of a megabyte, kept in a cache.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
LAST_8, JETPACK_6, LAST_10, LAST_11 = "8.6.1", "10.3.0", "10.16.1.11", "11.4.0.106"
WHEELS = {
    LAST_8: "tensorrt-bindings",
    JETPACK_6: "tensorrt-cu12-bindings",
    LAST_10: "tensorrt-cu13-bindings",
    LAST_11: "tensorrt-cu13-bindings",
}
NULL = """
#define NULLS(name) void *name(void) { return 0; }
NULLS(createInferBuilder_INTERNAL) NULLS(createInferRefitter_INTERNAL)
NULLS(createInferRuntime_INTERNAL) NULLS(createNvOnnxParserRefitter_INTERNAL)
NULLS(createNvOnnxParser_INTERNAL) NULLS(getBuilderPluginRegistry)
NULLS(getNvOnnxParserVersion) NULLS(getPluginRegistry) NULLS(initLibNvInferPlugins)
NULLS(_ZN11nvuffparser15createUffParserEv) NULLS(_ZN14nvcaffeparser117createCaffeParserEv)
NULLS(_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi)
NULLS(_ZN14nvcaffeparser123shutdownProtobufLibraryEv)
"""
FORWARD = """
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
static void *found(const char *library, const char *name) {
  void *handle = dlopen(library, RTLD_NOW | RTLD_GLOBAL);
  void *function = handle ? dlsym(handle, name) : 0;
  if (!function) { fprintf(stderr, "%s: %s\\n", name, dlerror()); abort(); }
  return function;
}
#define RTX(name) found("libtensorrt_rtx.so.1", name)
#define PARSER(name) found("libtensorrt_onnxparser_rtx.so.1", name)
static int32_t version(void) { return ((int32_t(*)(void))RTX("getInferLibVersion"))(); }
void *createInferBuilder_INTERNAL(void *logger, int32_t asked) {
  return ((void *(*)(void *, int32_t))RTX("createInferBuilder_INTERNAL"))(logger, version());
}
void *createInferRuntime_INTERNAL(void *logger, int32_t asked) {
  return ((void *(*)(void *, int32_t))RTX("createInferRuntime_INTERNAL"))(logger, version());
}
void *createNvOnnxParser_INTERNAL(void *network, void *logger, int32_t asked) {
  return ((void *(*)(void *, void *, int32_t))PARSER("createNvOnnxParser_INTERNAL"))(
      network, logger, version());
}
int32_t getNvOnnxParserVersion(void) {
  return ((int32_t(*)(void))PARSER("getNvOnnxParserVersion"))();
}
void *getPluginRegistry(void) { return ((void *(*)(void))RTX("getPluginRegistry"))(); }
void *getBuilderPluginRegistry(int32_t capability) {
  return ((void *(*)(int32_t))RTX("getBuilderPluginRegistry"))(capability);
}
void *createInferRefitter_INTERNAL(void *engine, void *logger, int32_t asked) { return 0; }
void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int32_t asked) { return 0; }
int initLibNvInferPlugins(void *logger, const char *space) { return 1; }
"""


def cache() -> Path:
    """Return the folder of downloaded bindings; MEDISSEG_TEST_CACHE names another."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MEDISSEG_TEST_CACHE") or Path(home) / "medisseg-tests")


def bindings(version: str) -> Path:
    """Return a folder that holds the package ``tensorrt_bindings`` of a version; skip offline."""
    place = cache() / f"{WHEELS[version]}-{version}-cp{sys.version_info[0]}{sys.version_info[1]}"
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{place}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            partial = Path(f"{place}.partial")
            got = subprocess.run(
                [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--only-binary=:all:",
                 "--disable-pip-version-check", "--no-compile", "--target", str(partial),
                 f"{WHEELS[version]}=={version}"],
                capture_output=True, text=True, timeout=180,
            )  # fmt: skip
            if got.returncode:
                shutil.rmtree(partial, ignore_errors=True)
                said = got.stderr.strip().splitlines()[-1:]
                pytest.skip(f"{WHEELS[version]} {version} could not be fetched: {said}")
            partial.rename(place)
    return place


def module_path(folder: Path, version: str, forward: bool) -> Path:
    """Make a folder that gives ``import tensorrt`` of a version, over stubs or TensorRT for RTX."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the stub libraries")
    place = folder / f"{version}-{'forward' if forward else 'null'}"
    libraries = place / "tensorrt_libs"
    libraries.mkdir(parents=True)
    source = place / "stub.c"
    source.write_text(FORWARD if forward else NULL)
    loads = ["import ctypes"]
    if forward:
        real = pytest.importorskip("tensorrt_rtx_libs")
        home = Path(real.__file__).parent
        for name in ("libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1"):
            loads.append(f"ctypes.CDLL({str(home / name)!r}, ctypes.RTLD_GLOBAL)")
    names = ["nvinfer", "nvinfer_plugin", "nvonnxparser"]
    for library in [*names, "nvparsers"] if version == LAST_8 else names:
        name = f"lib{library}.so.{version.split('.')[0]}"
        words = ["-shared", "-fPIC", "-w", f"-Wl,-soname,{name}", "-o", str(libraries / name)]
        subprocess.run([compiler, *words, str(source), "-ldl"], check=True)
        loads.append(f"ctypes.CDLL({str(libraries / name)!r})")
    (libraries / "__init__.py").write_text("\n".join(loads) + "\n")
    (place / "tensorrt_bindings").symlink_to(bindings(version) / "tensorrt_bindings")
    (place / "tensorrt").mkdir()
    (place / "tensorrt" / "__init__.py").write_text(
        "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n"
    )
    return place


def python(place: Path, *words: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run Python with ``place`` and this checkout on its path."""
    path = os.pathsep.join([str(place), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *words], env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
