#!/usr/bin/env bash
# Everything that waits for a GPU, in one command: tests, benchmarks, training with evaluation.
#
#   benchmarks/gpu_all.sh DATA [OUT] [MINUTES]
#
# DATA holds kvasir-seg/ (and glas/, isic2018-256/ where present). OUT (benchmarks/results/gpu) takes each
# result as it is made, a log of every step, and steps.txt. MINUTES (25) bounds the whole; training takes
# what the other steps leave. Called again with the same OUT it skips what has succeeded and resumes
# training. In the environment:
#   STEPS   only these, in this order's subset: build tests kernels frames network inference pipeline train
#   DEVICE=cpu   a rehearsal without a GPU: everything at its smallest
#   SEEDS (0) of the training runs, such as "0 1 2"; RUNS (runs/gpu) their folders
#   ENCODER   weights file of their encoder, a torchvision ResNet-50; without one they start from nothing
set -u
cd "$(dirname "$0")/.." || exit 2
data=${1:?usage: benchmarks/gpu_all.sh DATA [OUT] [MINUTES]} out=${2:-benchmarks/results/gpu} minutes=${3:-25}
device=${DEVICE:-cuda} python=${PYTHON:-python} runs=${RUNS:-runs/gpu} encoder=${ENCODER:-} seeds=${SEEDS:-0}
wanted=" ${STEPS:-build tests kernels frames network inference pipeline train} "
if [ ! -d "$data/kvasir-seg" ] && [[ $wanted == *" train "* ]]; then
  echo "error: $data has no kvasir-seg/; name the folder that holds the data sets, or set STEPS" >&2
  exit 2
fi
mkdir -p "$out" "$runs" || exit 2
end=$(($(date +%s) + minutes * 60)) failed=0
quick=()
[ "$device" != cpu ] || quick=(--quick)
trap 'exit 130' INT # Ctrl-C ends the step, gently, and then the whole
left() { echo $((end - $(date +%s))); }

bounded() { # seconds, name, command...: logged, never fatal to the rest
  local seconds=$1 name=$2 start code
  shift 2
  if grep -qs "^$name: exit 0 " "$out/steps.txt"; then echo "$name: done before"; return; fi
  [ "$seconds" -lt "$(left)" ] || seconds=$(left)
  if [ "$seconds" -lt 5 ]; then echo "$name: no time left" | tee -a "$out/steps.txt"; return 1; fi
  echo "== $name (at most $seconds s)"
  start=$(date +%s)
  timeout --foreground --signal=INT --kill-after=60 "$seconds" "$@" >"$out/$name.log" 2>&1
  code=$?
  echo "$name: exit $code ($(($(date +%s) - start)) s)" | tee -a "$out/steps.txt"
  [ "$code" -eq 0 ] && return
  failed=1
  tail -n 3 "$out/$name.log"
  return "$code"
}

step() { # share of the whole in percent, name, command...
  local seconds=$((minutes * 60 * $1 / 100)) name=$2
  shift 2
  [[ $wanted != *" $name "* ]] || bounded "$seconds" "$name" "$@"
}

"$python" -m medisseg doctor --json >"$out/machine.json" 2>"$out/doctor.log"
cuda=1
[ "$device" != cpu ] || cuda=0
step 15 build env MEDISSEG_CUDA=$cuda "$python" setup.py build_ext --inplace --build-temp "build/$device"
step 15 tests "$python" -m pytest tests -m gpu -q -p no:cacheprovider
step 15 kernels "$python" -m benchmarks.kernels --device "$device" --out "$out" "${quick[@]}"
step 5 frames "$python" -m benchmarks.frames --device "$device" --out "$out" "${quick[@]}"
step 10 network "$python" -m benchmarks.network --device "$device" --out "$out" "${quick[@]}"
step 12 inference "$python" -m benchmarks.inference --device "$device" --out "$out" "${quick[@]}"
step 8 pipeline "$python" -m benchmarks.pipeline --device "$device" --out "$out" "${quick[@]}"

if [[ $wanted == *" train "* ]]; then
  more=(--runs "$runs" --seeds $seeds --minutes "$(awk "BEGIN { print ($(left) - 30) / 60 }")")
  [ -z "$encoder" ] || more+=(--encoder "$encoder")
  bounded "$(left)" train "$python" -m benchmarks.training "$data" --out "$out" --device "$device" \
    "${more[@]}" "${quick[@]}"
fi
[ "$device" = cpu ] || bounded 60 page "$python" -m benchmarks.results
cat "$out/steps.txt"
exit $failed
