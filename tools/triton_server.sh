#!/usr/bin/env bash
# Make an environment with the real Triton Inference Server for the tests, without a container.
# Usage: tools/triton_server.sh VENV SERVER_VENV. Every failure is one line and exit code 2.
# The server's Python backend runs our bundle with the packages of VENV, but with a numpy below 2:
# with numpy 2 it answers OK and nothing.
set -u
cd "$(dirname "$0")/.." || exit 2
venv=$1 server=$2 log=$(mktemp)
trap 'rm -f "$log"' EXIT
fail() {
  tail -n 5 "$log" >&2
  rm -rf "$server"
  echo "error: $1" >&2
  exit 2
}
[ -x "$venv/bin/python" ] || fail "no environment in $venv; run: make setup"
[ "$(uname -sm)" = "Linux x86_64" ] || fail "nvidia-pytriton has its server for Linux on x86-64 alone"
"$venv/bin/python" -m venv "$server" >"$log" 2>&1 || fail "$server could not be made"
# Without its dependencies: the server needs none, and the packages are those of VENV.
"$server/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps \
  nvidia-pytriton==0.7.0 numpy==1.26.4 >"$log" 2>&1 || fail "nvidia-pytriton could not be fetched"
packages=$("$server/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
"$venv/bin/python" -c 'import sys; print(*filter(lambda p: "site-packages" in p, sys.path), sep="\n")' >"$packages/medisseg.pth"
pwd >>"$packages/medisseg.pth"
# The package carries a stub for each Python; the server looks for one in its backend's folder.
part=$packages/pytriton/tritonserver
minor=$("$server/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
cp "$part/python_backend_stubs/$minor/triton_python_backend_stub" "$part/backends/python/" 2>"$log" ||
  fail "nvidia-pytriton has no backend for Python $minor"
touch "$server/ready"
