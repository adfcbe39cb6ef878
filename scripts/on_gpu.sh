#!/usr/bin/env bash
# All that only a GPU can tell, in one call under ten minutes: tests, benchmarks, training.
#
#   scripts/on_gpu.sh OUT [MINUTES]
#
# OUT receives the logs and the trained model (mini.tar, in parts of 15 MiB: cat them together).
# MINUTES bounds the training. python3 must have torch, transformers and what they need; other
# packages, such as diffusers, are taken from wheels in .whl/. Training starts from the files in
# .gpu/ if there are any, such as the autoencoder's checkpoint of an earlier call.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: scripts/on_gpu.sh OUT [MINUTES]}
minutes=${2:-5}
mkdir -p "$out"

site=$(mktemp -d)
pip_here="python3 -m pip install -q --no-index --no-deps --no-compile --target $site"
if compgen -G ".whl/*.whl" > /dev/null; then $pip_here .whl/*.whl; fi
$pip_here --no-build-isolation . || exit
export PYTHONPATH="$site" PYTHONUNBUFFERED=1

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
timeout 150 python3 -m pytest -m gpu -q -p no:cacheprovider tests 2>&1 | tee "$out/tests.log" | tail -n 15
for model in mini sdxl; do
    timeout 60 python3 scripts/bench_batch.py --model "$model" --images 4 8 2>&1 \
        | tee "$out/bench-$model.log"
done

work=$(mktemp -d)
if [ -d .gpu ]; then cp -r .gpu/. "$work"; fi
timeout $((minutes * 60 + 90)) python3 -m consist train mini "$work" \
    --minutes "$minutes" --batch-size 256 2>&1 | tr '\r' '\n' | tail -n 5
if [ -e "$work/mini/unet" ]; then
    timeout 60 python3 scripts/check_reader.py --model "$work/mini" \
        --reader "$work/mini/reader.safetensors" 2>&1 | tee "$out/reader.log"
    timeout 90 python3 scripts/measure_mini.py "$out/measured" --model "$work/mini" \
        --reader "$work/mini/reader.safetensors" 2>&1 | tee "$out/mini.log"
    rm -f "$out"/measured/0*.png
fi
if [ -d "$work/mini" ]; then tar -C "$work" -c mini | split -b 15M - "$out/mini.tar."; fi
ls -l "$out"
