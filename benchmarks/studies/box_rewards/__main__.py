"""Does the box reward teach? The project's own beside MedMO's formula and beside no box term, from one checkpoint.

    python -m benchmarks.studies.box_rewards --init CHECKPOINT   # trains all arms, measures, writes the page
    python -m benchmarks.studies.box_rewards --page              # writes the page again from the stored figures

Rewards, seeds, steps and questions of each round stand in a file of box_reward_rounds/, which is committed before its
runs; the last round is run unless --plan names another. Where that file has a `start`, it is the command that trains
the checkpoint for --init; rounds without one start from the instruct/final of `medmo quickstart`. Every round stays on
the page, whatever it showed. Answers are greedy: sampling colder raises a sampled reward without any learning, so where
a round samples, those figures stand beside, with those of the untrained checkpoint at lower temperatures. Images are
held-out under fixed random crops. Finished arms are kept under --out; a stopped comparison goes on where it was, from
the same checkpoint only. Research use only.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from medmo_core.durable import write_text
from medmo_core.errors import exit_status

from .one_run import run_all
from .page import page
from .plan import FIGURES, PLANS, STUDIES, read_plan, stored_rounds
from .pooling import pool_seeds
from .start import init_of, pin_weights

PAGE = STUDIES.parents[1] / "docs/box_reward_comparison.md"


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then write figures and page.

    Returns:
        Status: 1 where the first arm of a round that was run does not win, else 0.

    Raises:
        InputError: the round needs --init, or --out holds runs that began from other weights.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.box_rewards",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--init", type=Path, help="checkpoint that every arm starts from")
    parser.add_argument("--out", type=Path, help="folder of the runs; default: of the plan's name, in runs/box_rewards")
    parser.add_argument("--plan", type=Path, default=max(PLANS.glob("*.json")), help="what is run")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--figures", type=Path, help="JSON to write; default: of the plan's name, among the page's")
    parser.add_argument("--page", action="store_true", help="only write the page")
    arguments = parser.parse_args(argv)
    plan = read_plan(arguments.plan)
    out = arguments.out or Path("runs/box_rewards") / arguments.plan.stem
    path = arguments.figures or FIGURES / arguments.plan.name
    if not arguments.page:
        init = init_of(plan, arguments.init)
        digest = pin_weights(init, out)
        measured = run_all(plan, init, out, arguments.jobs)
        figures = {**pool_seeds(plan, measured), "init_sha256": digest}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(figures, indent=1) + "\n")
    rounds = stored_rounds(path.parent)
    text = page(rounds)
    if path.parent == FIGURES:
        write_text(PAGE, text)
    print(text)
    if arguments.page:
        return 0
    return 0 if all(row["f1"]["difference"] > 0 for row in rounds[path.stem]["against"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
