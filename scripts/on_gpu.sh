#!/usr/bin/env bash
# All that only a GPU can tell, in one call under ten minutes: tests, tiles, benchmarks, training.
#
#   scripts/on_gpu.sh OUT kernels               # tests, tiles and benchmarks, no training
#   scripts/on_gpu.sh OUT [MINUTES] [train]
#
# OUT receives the logs and the trained model (mini.tar, in parts of 15 MiB: cat them together); of
# "kernels" also tiles.json with those of this GPU, and the table of bench_attention.py as JSON.
# MINUTES bounds the training; "train" does nothing else, for the calls after the first: training
# goes on in .gpu/, which is kept while the machine is. python3 must have torch, transformers and
# what they need; other packages, such as diffusers, are taken from wheels in .whl/.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: scripts/on_gpu.sh OUT [MINUTES] [train]}
minutes=${2:-5}
mkdir -p "$out"

site=$(mktemp -d)
pip_here="python3 -m pip install -q --no-index --no-deps --no-compile --target $site"
if compgen -G ".whl/*.whl" > /dev/null; then $pip_here .whl/*.whl; fi
$pip_here --no-build-isolation . || exit
export PYTHONPATH="$site" PYTHONUNBUFFERED=1

if [ "${3:-all}" = all ]; then
    nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,power.limit --format=csv,noheader \
        | tee "$out/gpu.log"
    timeout 150 python3 -m pytest -o addopts= -m gpu -q -p no:cacheprovider tests 2>&1 | tee "$out/tests.log" | tail -n 15
    for model in mini sdxl; do
        timeout 60 python3 scripts/bench_batch.py --model "$model" --images 4 8 2>&1 \
            | tee "$out/bench-$model.log"
    done
fi

if [ "$minutes" = kernels ]; then
    # the benchmark takes the tiles that were found
    timeout 120 python3 scripts/tune_kernel.py --out "$out/tiles.json" 2>&1 | tee "$out/tiles.log"
    if [ -e "$out/tiles.json" ]; then cp "$out/tiles.json" "$site/consist_kernels/tiles.json"; fi
    timeout 150 python3 scripts/bench_attention.py --device cuda --only sdxl sd15 2>&1 | tee "$out/bench-attention.log"
    cp scripts/results/bench_attention-*.json "$out/" 2> /dev/null
    timeout 40 python3 scripts/check_solver.py 2>&1 | tee "$out/solver.log"
    ls -l "$out"
    exit
fi

work=.gpu
timeout $((minutes * 60 + 90)) python3 -m consist train mini "$work" \
    --minutes "$minutes" --batch-size 256 --steps 8000 2>&1 | tr '\r' '\n' | tail -n 5
if [ -e "$work/mini/unet" ]; then
    timeout 60 python3 scripts/check_reader.py --pictures 1000 --model "$work/mini" \
        --reader "$work/mini/reader.safetensors" 2>&1 | tee "$out/reader.log"
    timeout 90 python3 scripts/measure_mini.py "$out/measured" --model "$work/mini" \
        --reader "$work/mini/reader.safetensors" 2>&1 | tee "$out/mini.log"
    rm -f "$out"/measured/0*.png
fi
if [ -d "$work/mini" ]; then tar -C "$work" -c mini | split -b 15M - "$out/mini.tar."; fi
ls -l "$out"
