#!/usr/bin/env bash
# All that only a GPU can show, one Markdown file each: bash benchmarks/gpu.sh OUT
# Needs jax with CUDA, flax, optax, torch, scikit-learn, Pillow, ml_collections and tqdm; no network. About half an hour.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: bash benchmarks/gpu.sh OUT}
mkdir -p "$out"
export PYTHONPATH=. XLA_PYTHON_CLIENT_PREALLOCATE=false # torch shares the device
failed=0

show() { # NAME MODULE [FLAGS]
  echo "+ python -m benchmarks.${*:2}"
  python -m "benchmarks.$2" "${@:3}" >"$out/$1.md" || { echo "failed: $1"; failed=1; }
}

for dtype in float32 bfloat16; do
  show "train_step-$dtype" train_step --dtype=$dtype
  show "train_step-$dtype-compiled" train_step --dtype=$dtype --compiled
done
for scale in 512 640; do
  show "ten_view-$scale" ten_view --scale=$scale --batch=4
done
show efficiency efficiency --repeats=5
show sampler sampler
show scan scan --map=28x28x512 --width=4096
show memory memory
show rehearsal rehearsal --minutes=8 --dtype=bfloat16
exit $failed
