"""Does the quickstart's result hold? Five seeds, each as two processes of one thread and as one process of two.

    python -m benchmarks.studies.quickstart_runs --out runs/study              # ten quickstarts in turn: two hours
    python -m benchmarks.studies.quickstart_runs --out runs/study --isa avx2   # more, as another processor rounds
    python -m benchmarks.studies.quickstart_runs --table runs/study            # write what is committed of it
    python -m benchmarks.studies.quickstart_runs --table                       # the same again, from what is committed

So small a model is chaotic: rounding alone changes where it ends, hence runs of one seed that differ in nothing else.
A finished run is kept; one that was stopped is begun anew by the same command. A study goes on elsewhere, on another
machine too, from a DIR that holds nothing but a copy of the published runs.json. --out writes DIR/runs.json after every
run. --table DIR copies that file to results/cpu/quickstart_runs/, and metrics.json and pictures of the median run to
where README takes them from; it writes docs/quickstart_runs.md and what the report of every quickstart says of the
study. `python -m benchmarks.report.results_page --write` then writes README's figures. Research use only.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from medmo_core.errors import exit_status

from .one_run import NUM_TRAINING_QUESTIONS, checked_layout
from .publishing import FIGURES, PLACES, publish
from .running import ISAS, run_all


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, or publish a study; status 2 for a mistake that the caller can fix."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.quickstart_runs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shown = "(default: %(default)s)"
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--out", type=Path, metavar="DIR", help="folder of the runs: make those that it lacks")
    task.add_argument("--table", type=Path, metavar="DIR", nargs="?", const=FIGURES, help="folder of runs to publish")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help=f"one run in each layout {shown}")
    parser.add_argument(
        "--layouts", type=checked_layout, nargs="+", default=["2x1", "1x2"], help=f"processes x threads of each {shown}"
    )
    parser.add_argument("--isa", choices=list(ISAS), default="machine", help=f"which instructions are used {shown}")
    parser.add_argument("--size", choices=sorted(NUM_TRAINING_QUESTIONS), default="tiny", help=f"which configs {shown}")
    asked = parser.parse_args(argv)

    def work() -> int:
        if asked.table is not None:
            for path in publish(asked.table, PLACES):
                print(f"wrote {path}")
            return 0
        study = run_all(asked.out, size=asked.size, seeds=asked.seeds, layouts=asked.layouts, isa=asked.isa)
        print(f"{len(study.runs)} runs in {asked.out}; publish them: --table {asked.out}")
        return 0

    return exit_status(work)


if __name__ == "__main__":
    raise SystemExit(main())
