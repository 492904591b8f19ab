"""Does the box reward teach? The project's own beside MedMO's formula and beside no box term, from one checkpoint.

    medmo quickstart                                   # its instruct/final is what every arm starts from
    python -m benchmarks.studies.box_rewards           # trains every arm with every seed, measures, writes the page
    python -m benchmarks.studies.box_rewards --page    # writes the page again from the stored figures

Rewards, seeds, steps and questions of each round stand in a file of box_reward_rounds/, which is committed before its
runs; the last round is run unless --plan names another. Where that file has a `start`, it is the command that trains
the checkpoint for --init. Every round stays on the page, whatever it showed. Answers are greedy: sampling colder raises
a sampled reward without any learning, so where a round samples, those figures stand beside, with those of the untrained
checkpoint at lower temperatures. Images are held-out under fixed random crops. Finished arms are kept under --out; a
stopped comparison goes on where it was. Research use only.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from medmo_core.durable import write_text

from .one_run import run_all
from .page import page
from .plan import FIGURES, PLANS, STUDIES, read_plan, stored_rounds
from .pooling import pool_seeds

PAGE = STUDIES.parents[1] / "docs/box_reward_comparison.md"


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then write figures and page; status 1 where the first arm does not win."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.box_rewards",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--init", type=Path, default=Path("runs/quickstart/instruct/final"), help="starting checkpoint")
    parser.add_argument("--out", type=Path, default=Path("runs/compare_box_rewards"), help="folder of the runs")
    parser.add_argument("--plan", type=Path, default=max(PLANS.glob("*.json")), help="what is run")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--figures", type=Path, help="JSON to write; default: of the plan's name, among the page's")
    parser.add_argument("--page", action="store_true", help="only write the page")
    arguments = parser.parse_args(argv)
    plan = read_plan(arguments.plan)
    path = arguments.figures or FIGURES / arguments.plan.name
    if not arguments.page:
        measured = run_all(plan, arguments.init, arguments.out, arguments.jobs)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(pool_seeds(plan, measured), indent=1) + "\n")
    rounds = stored_rounds(path.parent)
    text = page(rounds)
    if path.parent == FIGURES:
        write_text(PAGE, text)
    print(text)
    return 0 if all(row["f1"]["difference"] > 0 for row in rounds[path.stem]["against"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
