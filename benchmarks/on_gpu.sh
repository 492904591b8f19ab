#!/bin/sh
# First contact with a GPU, in one command, inside ten minutes and without a network:
#
#   benchmarks/on_gpu.sh OUT            # results go into the folder OUT; PYTHON=... names another interpreter
#   benchmarks/on_gpu.sh OUT giou ...   # only these rooms
#
# 1. medmo doctor --verify   every op against its reference on this machine          OUT/doctor.txt, OUT/doctor.json
# 2. the kernel tests        on the real chip, for all dtypes                        OUT/tests.txt
# 3. the kernel benchmark    every op against its peers, medians                     OUT/kernels.json, OUT/kernels.md
#
# Each stage has a time limit of its own, and what it wrote stays when a later one fails. Without a GPU the same runs on
# the CPU, the tests in Triton's interpreter. The exit status is 0 when all three passed.
set -u
[ $# -ge 1 ] || { echo "usage: $0 OUT [ROOM ...]" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
rooms=$*
chosen=kernels
[ -z "$rooms" ] || chosen="kernels and ($(echo "$rooms" | sed 's/  */ or /g'))"
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-python3}
PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
failed=0
: > "$out/summary.txt"

stage() {
    name=$1
    limit=$2
    shift 2
    start=$(date +%s)
    if timeout "$limit" "$@" > "$out/$name.txt" 2>&1; then verdict=passed; else verdict="FAILED (status $?)"; failed=1; fi
    tail -n 15 "$out/$name.txt"
    echo "$name: $verdict in $(($(date +%s) - start)) s" | tee -a "$out/summary.txt"
}

stage doctor 200 "$PYTHON" -m medmo_core.doctor --verify --rooms $rooms --json "$out/doctor.json"
stage tests 200 "$PYTHON" -m pytest tests/kernels/test_every_op.py -k "$chosen" -p no:cacheprovider
stage kernels 190 "$PYTHON" -m benchmarks.bench_kernels --out "$out" --rooms $rooms --budget-s 150
cat "$out/summary.txt"
exit $failed
