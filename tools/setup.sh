#!/usr/bin/env bash
# Make the virtual environment: pinned packages, the C++ extension, this checkout in editable form.
# Every package must have the SHA-256 that a lock file names. PyTorch, whose build differs by machine, and the
# NVIDIA libraries that it brings have their versions pinned only.
# Usage: tools/setup.sh PYTHON VENV. Every failure is one line and exit code 2.
set -u
cd "$(dirname "$0")/.." || exit 2
python=$1 venv=$2 fresh= lacking=
needed_mb=9000
log=$(mktemp)

leave() {
  [ -z "$fresh" ] || rm -rf "$venv"
  rm -f "$log"
  exit "$1"
}
fail() {
  echo "error: $1" >&2
  leave 2
}
trap 'echo "stopped; the same command starts again" >&2; leave 130' INT TERM

command -v "$python" >/dev/null || fail "no $python here; install Python 3.10 to 3.12, or name it: make PYTHON=python3.12"
"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' ||
  fail "$("$python" --version 2>&1) is not supported; name a Python 3.10 to 3.12: make PYTHON=python3.12"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
  fail "this Python cannot make virtual environments; on Debian or Ubuntu: apt install python3-venv python3-dev"
compiler=${CXX:-c++}
command -v "${compiler%% *}" >/dev/null ||
  fail "no C++ compiler ($compiler); on Debian or Ubuntu: apt install g++"
[ -e "$venv" ] || fresh=yes
if ! "$venv/bin/python" -m pip --version >"$log" 2>&1; then # absent, or left by a set-up that was killed
  lacking=yes
  free_mb=$(df -Pm . | awk 'NR == 2 {print $4}')
  [ "$free_mb" -ge "$needed_mb" ] || fail "only $free_mb MB free here; the packages need $needed_mb MB"
fi

unfetched="NewConnectionError|NameResolutionError|ProxyError|ReadTimeout|No matching distribution"
unfetched+=${PIP_NO_INDEX:+|ResolutionImpossible} # what pip says of a folder that lacks a pinned wheel
explain() { # what pip printed -> the one line that helps
  if grep -q "DO NOT MATCH THE HASHES" "$log"; then
    other=$(grep -m 1 -oE "[A-Za-z0-9._-]+ ?==[^ ;]+" "$log")
    fail "${other:-a package} is not the file that the lock names (its SHA-256 differs); it was not installed: check the index or folder it came from"
  elif grep -q "No space left" "$log"; then
    fail "the disk is full; free $needed_mb MB and repeat"
  elif grep -qE "$unfetched" "$log"; then
    fail "packages could not be fetched; check the network, or install from a folder of wheels (docs/guide/install.md)"
  fi
  tail -n 12 "$log" >&2
  fail "$1 could not be installed; the lines above say why"
}
install() {
  echo "  $1"
  local what=$1
  shift
  "$venv/bin/python" -m pip install --disable-pip-version-check --quiet --retries 2 "$@" >"$log" 2>&1 || explain "$what"
}

echo "setting up in $venv (once)"
rm -f "$venv/ready"
[ -z "$lacking" ] || "$python" -m venv "$venv" >"$log" 2>&1 || explain "the virtual environment"
install "build tools" --require-hashes --no-deps --requirement tools/build-requirements.lock
install "packages" --require-hashes --no-deps --no-build-isolation --requirement requirements.lock
install "PyTorch" --constraint constraints.txt torch
install "Med-DisSeg with its C++ extension" --no-deps --no-build-isolation --editable .
"$venv/bin/python" -c "from kernels import frames; frames.build_info()" >"$log" 2>&1 || explain "the C++ extension"
touch "$venv/ready"
rm -f "$log"
