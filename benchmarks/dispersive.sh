#!/usr/bin/env bash
# Does the dispersive loss matter? Four forms, equal budgets, paired tests, collapse of the features.
#
#   benchmarks/dispersive.sh DATA [OUT] [SEEDS]
#
# DATA is kvasir-seg/, OUT (runs/dispersive) takes the runs, SEEDS (3) is a count or a list. The study is
# small enough for two CPU cores (half an hour): the edge preset at 96 x 96, two epochs of stage 1, four of
# stage 2. Called again it goes on where it stopped. Then: python -m benchmarks.results
set -eu
cd "$(dirname "$0")/.."
data=${1:?usage: benchmarks/dispersive.sh DATA [OUT] [SEEDS]} out=${2:-runs/dispersive} seeds=${3:-3}
python=${PYTHON:-python}
$python -m medisseg train edge-kvasir name=edge-dispersive data="$data" out="$out" budget_minutes=null \
  "input.size=[96,96]" stage1.epochs=2 stage2.epochs=4 stage1.ema=0.97 stage2.ema=0.97 \
  stage2.validate_every=2 hardware.threads="${THREADS:-2}" --study dispersive --seeds "$seeds"
for run in "$out"/study-dispersive/*/seed*; do
  variant=$(basename "$(dirname "$run")") seed=$(basename "$run")
  label=${variant//-/ }
  $python -m medisseg evaluate "$run/best.safetensors" --data "$data" --split val --out "$run/val"
  $python -m medisseg explain "$run/best.safetensors" --data "$data" --split val --images 4 --out "$run/val"
  $python -m benchmarks.results add "$run" "$run/val" --name "dispersive-$variant-$seed" \
    --table "Does the dispersive loss matter? (edge, 96 x 96, six epochs, Kvasir-SEG)" \
    --label "$label" --protocol held-out --against none
done
