#!/usr/bin/env bash
# All that only a GPU can tell, in one call under ten minutes: tests, benchmarks, training.
#
#   scripts/on_gpu.sh OUT [MINUTES]     OUT receives the logs and the trained model
#
# Needs python3 with torch and transformers; takes other packages from wheels in .whl/ if it is
# there, and continues training from OUT's checkpoint of an earlier call in .gpu/ if it is there.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: on_gpu.sh OUT [MINUTES]}
minutes=${2:-6}
mkdir -p "$out"

site=$(mktemp -d)
if compgen -G ".whl/*.whl" > /dev/null; then
    python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" .whl/*.whl
fi
ln -s "$PWD/kernels" "$site/consist_kernels"
export PYTHONPATH="$PWD:$site" PYTHONUNBUFFERED=1

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
timeout 120 python3 -m pytest -m gpu -q -p no:cacheprovider tests 2>&1 | tee "$out/tests.log" | tail -n 15
for model in mini sdxl; do
    timeout 60 python3 scripts/bench_batch.py --model "$model" --images 4 8 2>&1 | tee "$out/bench-$model.log"
done

work=$(mktemp -d)
if [ -d .gpu ]; then cp -r .gpu/. "$work"; fi
timeout $((minutes * 60 + 60)) python3 -m consist train mini "$work" --minutes "$minutes" --batch-size 512 2>&1 \
    | tr '\r' '\n' | tail -n 5
if [ -d "$work/mini" ]; then tar -cf "$out/mini.tar" -C "$work" mini; fi
cp "$work"/unet.safetensors "$out/" 2> /dev/null || true
ls -l "$out"
