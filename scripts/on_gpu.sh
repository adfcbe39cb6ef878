#!/usr/bin/env bash
# All that only a GPU can tell, each call under ten minutes: tests, tiles, benchmarks, training.
#
#   scripts/on_gpu.sh OUT                      # a little of everything
#   scripts/on_gpu.sh OUT kernels              # tests, tiles and benchmarks alone, in full
#   scripts/on_gpu.sh OUT train [MINUTES]      # the next leg of mini's training alone
#
# OUT receives few files: log.txt; of the kernels also tiles.json with those of this GPU and the
# benchmark's JSON; of training the model (mini.tar, in parts of 15 MiB: cat them together) and a
# sheet of its pictures.
# Training begins with the mini of the package, for MINUTES at its full rate and a third as many
# steps while that falls; it goes on in .gpu/, which is kept while the machine is. python3 must
# have torch, transformers and what they need; other packages, such as diffusers, peft and
# lazy_loader, are taken from wheels in .whl/.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: scripts/on_gpu.sh OUT [all|kernels|train] [MINUTES]}
what=${2:-all}
case $what in
    all | kernels | train) ;;
    *) echo "error: it does all, kernels or train, not $what" >&2; exit 2 ;;
esac
mkdir -p "$out"

site=$(mktemp -d)
pip_here="python3 -m pip install -q --no-index --no-deps --no-compile --target $site"
if compgen -G ".whl/*.whl" > /dev/null; then $pip_here .whl/*.whl; fi
$pip_here --no-build-isolation . || exit
export PYTHONPATH="$site" PYTHONUNBUFFERED=1

# SECONDS NAME COMMAND...: what it prints is shown and kept
logged() {
    echo "== $2" | tee -a "$out/log.txt"
    timeout "$1" "${@:3}" 2>&1 | tr '\r' '\n' | tee -a "$out/log.txt" | tail -n 60
}

tests() { logged 120 tests python3 -m pytest -o addopts= -m gpu -q -p no:cacheprovider tests; }

attention() {
    logged "$1" bench-attention python3 scripts/bench/attention.py --device cuda "${@:2}"
    cp scripts/results/bench_attention-*.json "$out/"
}

steps() {
    logged 60 "bench-$1-$2" python3 scripts/bench/batch.py --model "$1" --backend "$2" \
        --anchors 2 --steps 4 --rounds 5
}

kernels() {
    tests
    logged 90 tiles python3 scripts/bench/kernel_tiles.py --out "$out/tiles.json"
    # the benchmarks take the tiles that were found
    if [ -e "$out/tiles.json" ]; then cp "$out/tiles.json" "$site/consist_kernels/tiles.json"; fi
    attention 140 --only "sdxl 64" "sdxl 32" sd15 --share 0.25 1 --rounds 5
    for model in sdxl sd15; do
        for backend in triton torch; do steps $model $backend; done
    done
    logged 40 solver python3 scripts/check/solver.py
}

train() {
    work=.gpu
    command="python3 -m consist train mini $work --start mini --batch-size 256"
    logged $(($1 * 60 + 90)) train $command --minutes "$1" --steps 1000000
    step=$(python3 -c "from pathlib import Path
from consist.training.checkpoints import checkpoints
print(int(checkpoints(Path('$work/unet'))[-1].stem.removeprefix('step-')))") || return
    logged 240 train-end $command --steps $((step * 4 / 3))
    tar -C "$work" -c mini | split -b 15M - "$out/mini.tar."
    # the model is safe; how good it is can be measured elsewhere too
    logged 80 mini python3 scripts/measure/mini.py "$out/measured" --model "$work/mini" \
        --reader "$work/mini/reader.safetensors" --prompts 500 --free 200
    find "$out/measured" -name "0*.png" -delete
}

logged 10 gpu nvidia-smi --format=csv,noheader \
    --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,power.limit
case $what in
    all)
        tests
        attention 60 --only "sdxl 64" --share 0.25
        steps sdxl triton
        train "${3:-1}"
        ;;
    kernels) kernels ;;
    train) train "${3:-4}" ;;
esac
ls -l "$out"
