#!/bin/sh
# Checks that need a GPU, in at most 8 minutes on an H100: the tests that need CUDA, the cost of a step on nets with targets
# and on large nets, and a short comparison on MNIST. Writes one JSON file per measurement.
#     scripts/gpu_check.sh [--tiny]      --tiny: on the CPU, with tiny nets, to test the script itself
# $OUT: folder of the results (results/bench/gpu); $PYTHON: the interpreter (python); $SIBP_DATA_ROOT: a folder with MNIST.
set -eu
cd "$(dirname "$0")/.."
out=${OUT:-results/bench/gpu}
python=${PYTHON:-python}
device=cuda
seconds=4
mkdir -p "$out"
failed=0

run() { # NAME, SECONDS at most, COMMAND: a failure does not stop later ones
    name=$1 limit=$2
    shift 2
    echo "== $name"
    if timeout "$limit" "$@" >"$out/$name.log" 2>&1; then
        echo "   done"
    else
        echo "   failed with exit code $?; see $out/$name.log"
        failed=1
    fi
}

step() { # NAME, SECONDS at most, arguments of `sibp bench step`
    name=$1 limit=$2
    shift 2
    run "step-$name" "$limit" "$python" -m sibp.bench step --device "$device" --seconds "$seconds" --no-memory \
        --out "$out/$name" "$@"
}

if [ "${1:-}" = --tiny ]; then
    device=cpu seconds=0
    step mlp 120 --net 12-8-3 --batch 6 --methods exact cg:2 proxbp --threads 1
    step peers 120 --net 12-9-8-3 --batch 6 --methods exact adam muon kfac --threads 1
    step compile 240 --net 12-8-3 --batch 6 --methods sgd+compile exact exact+compile --threads 1
    run arena 240 "$python" -m sibp.train experiment=digits_quick max_steps=3 device="$device" run_root="$out/runs"
    exit "$failed"
fi

"$python" -c "import torch; assert torch.cuda.is_available(), 'torch finds no CUDA device'"
run tests 90 "$python" -m pytest -q -n 0 -k "cuda or gpu or synchronisation" tests/optim/test_contract.py \
    tests/optim/test_synchronisation.py tests/bench/test_bench_command.py
step table 75 --methods exact cg:3 proxbp adam
step wide 40 --net 8192-8192-8192-10 --batch 512 --methods exact cg:3 proxbp muon
step resnet18 50 --net resnet18 --methods exact cg:3 adam
step transformer 50 --net transformer_6 --methods exact cg:3 muon
step graphs 45 --net 784-500-10 784-500-500-500-10 resnet8 transformer_block \
    --methods sgd+graph exact exact+graph cg:3 cg:3+graph
step compile 70 --net 784-500-500-500-10 transformer_block --methods sgd+compile exact exact+compile cg:3 cg:3+compile
if [ -n "${SIBP_DATA_ROOT:-}" ]; then
    for method in sgd sibp proxbp; do
        run "mnist-$method" 20 "$python" -m sibp.train optimizer="$method" dataset=mnist model=mlp max_steps=500 \
            device="$device" data_root="$SIBP_DATA_ROOT" run_root="$out/runs"
    done
fi
exit "$failed"
