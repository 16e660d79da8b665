#!/bin/sh
# Runs the tests of the kernels under the address and undefined-behaviour sanitizers, in a copy of the project.
#     scripts/sanitize.sh [python]       needs gcc with libasan and libubsan
set -eu
python=$(command -v "${1:-python}")
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
root=$(cd "$(dirname "$0")/.." && pwd)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cd "$root"
cp -r sibp tests configs scripts setup.py pyproject.toml README.md LICENSE "$copy"
cd "$copy"
rm -f sibp/prox/kernels/*.so
CC="gcc -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer" \
    "$python" setup.py --quiet build_ext --inplace
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0 PYTHONPATH="$copy" \
    "$python" -m pytest -x -q -s -n 0 -p no:cacheprovider \
        tests/prox/test_kernel_memory.py tests/prox/test_fused.py tests/prox/test_outputs.py \
        tests/prox/test_smooth_kernels.py tests/prox/test_closed.py
