#!/usr/bin/env bash
# Build the extension's CPU part with AddressSanitizer and UndefinedBehaviorSanitizer and fuzz it.
# Usage: tests/frames/sanitize.sh [PYTHON] [SECONDS] [BUILD_FOLDER]
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${1:-python3} seconds=${2:-10} build=${3:-$root/build/sanitize}
mkdir -p "$build"
generator=()
! command -v ninja >/dev/null || generator=(-G Ninja)
cmake -S "$root" -B "$build" "${generator[@]}" -DMEDISSEG_SANITIZE=ON -DMEDISSEG_CUDA=OFF \
  -DCMAKE_BUILD_TYPE=None -DPython_EXECUTABLE="$(command -v "$python")" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" >"$build/log" 2>&1 || { cat "$build/log"; exit 1; }
cmake --build "$build" --parallel >"$build/log" 2>&1 || { cat "$build/log"; exit 1; }
compiler=${CXX:-c++}
# Python itself is not instrumented, so the runtimes come first; its own leaks are not ours.
LD_PRELOAD="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libubsan.so)" \
  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
  "$python" "$root/tests/frames/fuzz.py" --seconds "$seconds" --extension "$(ls "$build"/_frames*.so)"
