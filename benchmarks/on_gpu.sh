#!/bin/sh
# First contact with a GPU, in one command, without a network; about fifteen minutes, the limits add up to eighteen:
#
#   benchmarks/on_gpu.sh OUT            # results go into the folder OUT; PYTHON=... names another interpreter
#   benchmarks/on_gpu.sh OUT giou ...   # only these rooms, no training step
#   benchmarks/on_gpu.sh OUT step       # only the training step
#   benchmarks/on_gpu.sh OUT grpo       # only the GRPO step
#
# 1. the kernel tests        on the real chip, for all dtypes                        OUT/tests-ROOM.txt
# 2. medmo doctor --verify   every op against its reference on this machine          OUT/doctor.txt, OUT/doctor.json
# 3. the kernel benchmark    every op against its peers, medians                     OUT/kernels.json, OUT/kernels.md
# 4. a training step         the 4B model beside transformers' with its weights      OUT/step.json, OUT/step.md
# 5. a GRPO step             the same, with rollouts, phase by phase                 OUT/grpo_step.json, OUT/grpo_step.md
#
# The rooms are tested side by side, a process each: most of their time is compilation, which the doctor then finds done.
# Each stage has a time limit of its own, and what it wrote stays when a later one fails. Without a GPU the same runs on
# the CPU, the tests in Triton's interpreter. OUT/summary.txt has a line per stage; the exit status is 0 when all passed.
set -u
[ $# -ge 1 ] || { echo "usage: $0 OUT [ROOM ...]" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
rooms=$*
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-python3}
PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
failed=0
: > "$out/summary.txt"

finish() { # name, status, start
    if [ "$2" -eq 0 ]; then verdict=passed; else verdict="FAILED (status $2)"; failed=1; fi
    echo "$1: $verdict in $(($(date +%s) - $3)) s" | tee -a "$out/summary.txt"
}

stage() { # name, seconds, command ...
    name=$1
    limit=$2
    shift 2
    start=$(date +%s)
    timeout "$limit" "$@" > "$out/$name.txt" 2>&1
    status=$?
    tail -n 15 "$out/$name.txt"
    finish "$name" $status "$start"
}

if [ "$rooms" != step ] && [ "$rooms" != grpo ]; then
    start=$(date +%s)
    running=
    for room in ${rooms:-$(basename -a $(dirname kernels/medmo_kernels/*/triton_kernel.py))}; do
        timeout 220 "$PYTHON" -m pytest tests/kernels/test_every_op.py -k "[$room:" -p no:cacheprovider > "$out/tests-$room.txt" 2>&1 &
        running="$running $room=$!"
    done
    status=0
    for pair in $running; do
        room=${pair%=*}
        if wait "${pair#*=}"; then echo "$room: $(tail -n 1 "$out/tests-$room.txt")"; else
            echo "$room: FAILED, see tests-$room.txt"
            status=1
        fi
    done
    finish tests $status "$start"

    stage doctor 150 "$PYTHON" -m medmo_core.doctor --verify --rooms $rooms --json "$out/doctor.json"
    stage kernels 190 "$PYTHON" -m benchmarks.bench_kernels --out "$out" --rooms $rooms --budget-s 150
fi
case "$rooms" in
    "" | step) stage step 220 "$PYTHON" -m benchmarks.bench_step --out "$out" --budget-s 150 ;;
esac
case "$rooms" in
    "" | grpo) stage grpo 300 "$PYTHON" -m benchmarks.bench_grpo_step --out "$out" --budget-s 120 ;;
esac
cat "$out/summary.txt"
exit $failed
