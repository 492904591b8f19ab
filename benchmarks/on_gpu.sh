#!/bin/sh
# The whole benchmark on a GPU, in one command, without a network; its stages' limits add up to 28 minutes.
#
#   COMMIT=$(git describe --always --dirty --abbrev=9) benchmarks/on_gpu.sh OUT      # results go into the folder OUT
#   benchmarks/on_gpu.sh OUT tests doctor      # only these stages; each call may go on with an OUT begun before
#   benchmarks/on_gpu.sh OUT giou ...          # only these rooms: tests, doctor, kernels
#
# stage       limit  what                                                                 leaves
# tests       220 s  the kernel tests on the real chip, for all dtypes, rooms side by side   OUT/tests-ROOM.txt
# doctor      120 s  every op against its definition on this machine                         OUT/doctor.txt, doctor.json
# kernels     300 s  every op against its peers, and against every back end a table may name OUT/result.json
# train_step  200 s  a training step of the 4B model beside transformers' with its weights    the same file
# grpo_step   240 s  a GRPO step, with rollouts, phase by phase                               the same file
# decode      160 s  prefill, and decoding at batches 1, 8, 64                                the same file
# modules     160 s  the other modules and the whole model                                    the same file
# recipes     160 s  the other recipes and their scaling curves                               the same file
# profiles    120 s  the three kernels furthest above their floor: ncu, else torch.profiler   OUT/profile-*.txt
#
# Where a command may take ten minutes at most, these calls fit: "tests doctor", "kernels decode", "train_step grpo_step",
# "modules recipes profiles". The result file is written after every comparison, so that nothing is lost when a stage is
# stopped; ceilings are measured at the start of each stage, the best counts. Peers that are not installed are reported
# as absent. Without a GPU the same stages run small on the CPU, the tests in Triton's interpreter.
#
# Needed: torch, triton, pytest, pytest-benchmark, SciPy. PYTHON names another interpreter; COMMIT says what is measured
# where there is no git. OUT/summary.txt has a line per stage; the exit status is 0 when all passed.
set -u
[ $# -ge 1 ] || { echo "usage: $0 OUT [STAGE or ROOM ...]" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-python3}
PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
[ -z "${COMMIT:-}" ] || export MEDMO_COMMIT="$COMMIT"
stages=
rooms=
for word in "$@"; do
    case "$word" in
        tests | doctor | kernels | train_step | grpo_step | decode | modules | recipes | profiles) stages="$stages $word" ;;
        *)
            [ -f "kernels/medmo_kernels/$word/cases.py" ] || { echo "$word is neither a stage nor a room" >&2; exit 2; }
            rooms="$rooms $word"
            ;;
    esac
done
if [ -z "$stages" ]; then
    stages="tests doctor kernels"
    [ -n "$rooms" ] || stages="$stages train_step grpo_step decode modules recipes profiles"
fi
failed=0

finish() { # name, status, start
    case "$2" in
        0) verdict=passed ;;
        124) verdict="STOPPED at its limit" failed=1 ;;
        *) verdict="FAILED (status $2)" failed=1 ;;
    esac
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

bench() { # name, seconds, file, -k expression: the last comparison begins 60 seconds before the limit
    stage "$1" "$2" "$PYTHON" -m benchmarks "$3" -k "$4" -p no:cacheprovider --out "$out/result.json" --budget-s $(($2 - 60))
}

run_tests() {
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
}

ops_of() { # rooms: their ops as a -k expression; none named: all
    "$PYTHON" -c 'import importlib, sys
names = [s.name for room in sys.argv[1:] for s in importlib.import_module(f"medmo_kernels.{room}.cases").SPECS]
print(" or ".join(names))' "$@"
}

for name in $stages; do
    case "$name" in
        tests) run_tests ;;
        doctor) stage doctor 120 "$PYTHON" -m medmo_core --verify --rooms $rooms --json "$out/doctor.json" ;;
        kernels) bench kernels 300 bench_kernels.py "$(ops_of $rooms)" ;;
        train_step) bench train_step 200 bench_modules.py train_step ;;
        grpo_step) bench grpo_step 240 bench_recipes.py grpo_step ;;
        decode) bench decode 160 bench_modules.py "(prefill or decode) and not decoder_block" ;;
        modules) bench modules 160 bench_modules.py "decoder_block or not (train_step or prefill or decode)" ;;
        recipes) bench recipes 160 bench_recipes.py "not grpo_step" ;;
        profiles) stage profiles 120 "$PYTHON" -m benchmarks.profile_kernels "$out/result.json" --out "$out" ;;
    esac
done
cat "$out/summary.txt"
[ ! -f "$out/result.json" ] || "$PYTHON" - "$out/result.json" <<'END'
import sys
from pathlib import Path
from benchmarks.suite import machine, schema
found = schema.read(Path(sys.argv[1])).machine
place = f"benchmarks/results/{machine.folder_name(found)}/{found.date[:10]}-{found.commit}{'-changed' * found.changed}.json"
print(f"""To publish, in a checkout:
  mkdir -p {Path(place).parent} && cp {sys.argv[1]} {place}
  python -m benchmarks.report.back_ends benchmarks/results/cuda-*/*.json --write
  python -m benchmarks.report""")
END
exit $failed
