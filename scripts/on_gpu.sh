#!/usr/bin/env bash
# All that only a GPU can tell, in one call under ten minutes: tests, benchmarks, training.
#
#   scripts/on_gpu.sh OUT [MINUTES] [train]
#
# OUT receives the logs and the trained model (mini.tar, in parts of 15 MiB: cat them together).
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
    nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
    timeout 150 python3 -m pytest -m gpu -q -p no:cacheprovider tests 2>&1 | tee "$out/tests.log" | tail -n 15
    for model in mini sdxl; do
        timeout 60 python3 scripts/bench_batch.py --model "$model" --images 4 8 2>&1 \
            | tee "$out/bench-$model.log"
    done
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
