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
encoder_name=${encoder##*/}
wanted=" ${STEPS:-build tests kernels frames network inference pipeline train} "
if [ ! -d "$data/kvasir-seg" ] && [[ $wanted == *" train "* ]]; then
  echo "error: $data has no kvasir-seg/; name the folder that holds the data sets, or set STEPS" >&2
  exit 2
fi
mkdir -p "$out" "$runs" || exit 2
end=$(($(date +%s) + minutes * 60)) failed=0
quick=() small=() summaries=benchmarks/results/runs precision=bf16
if [ "$device" = cpu ]; then
  quick=(--quick) small=(preset=edge "input.size=[64,64]" epochs=1 hardware.threads=2)
  summaries=$out/runs precision=fp32
fi
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

train() { # weight of what is left, name, data folder, reported list, table, protocol, config, key=value...
  local weight=$1 name=$2 from=$data/$3 list=$4 table=$5 protocol=$6 seconds budget
  shift 6
  local run=$runs/$name kept=$runs/$name.minutes settings=("${small[@]}")
  [[ $wanted == *" train "* ]] && [ -d "$from" ] || return 0
  [ -z "$encoder" ] || settings+=(encoder_weights="$encoder")
  # The budget belongs to the run's configuration: a resumed run keeps the one it began with.
  seconds=$(($(left) * weight / weights - 60)) weights=$((weights - weight))
  [ -f "$kept" ] || [ "$seconds" -lt 15 ] || awk "BEGIN { printf \"%.2f\", $seconds / 66 }" >"$kept"
  if [ ! -f "$kept" ]; then echo "$name: no time left" | tee -a "$out/steps.txt"; return; fi
  budget=$(cat "$kept")
  bounded $((seconds > 15 ? seconds + 60 : 75)) "train-$name" "$python" -m medisseg train "$@" data="$from" \
    out="$run" budget_minutes="$budget" hardware.device="$device" hardware.precision="$precision" \
    hardware.progress=false "${settings[@]}" || return
  bounded 120 "evaluate-$name" "$python" -m medisseg evaluate "$run/stage2/best.safetensors" --data "$from" \
    --split "$list" --device "$device" --out "$run/evaluation" || return
  bounded 30 "summary-$name" "$python" - "$run" "$name" "$summaries" "$table" "$protocol" \
    "At most $budget minutes on one $device device in $precision, encoder from ${encoder_name:-nothing}." <<'PYTHON'
import sys
from pathlib import Path
from benchmarks.results import add

run, name, summaries, table, protocol, note = sys.argv[1:]
about = {"table": table, "label": "Med-DisSeg", "protocol": protocol, "note": note}
Path(summaries).mkdir(parents=True, exist_ok=True)
print(add(Path(run), Path(run, "evaluation"), name, about, Path(summaries)))
PYTHON
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

weights=0
for seed in $seeds; do weights=$((weights + 10)); done
for seed in $seeds; do # seeds of one protocol share a row of docs/results.md
  train 4 "full-kvasir-held-out-$seed" kvasir-seg val Kvasir-SEG held-out \
    kvasir-seg seed="$seed" split.validation=null "split.held_out=[val]"
  train 3 "full-kvasir-paper-$seed" kvasir-seg val Kvasir-SEG paper kvasir-seg seed="$seed"
  train 1 "full-glas-paper-$seed" glas test GlaS paper glas seed="$seed"
  train 1 "full-glas-held-out-$seed" glas test GlaS held-out \
    glas seed="$seed" split.validation=null "split.held_out=[test]"
  train 1 "full-isic2017-lists-$seed" isic2018-256 isic2017_test "ISIC-2018 images of ISIC-2017's lists" held-out \
    isic2017 seed="$seed" split.train=isic2017_train split.validation=isic2017_val "split.held_out=[isic2017_test]"
done
[ "$device" = cpu ] || bounded 60 page "$python" -m benchmarks.results
cat "$out/steps.txt"
exit $failed
