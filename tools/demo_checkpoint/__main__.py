"""Train `medmo-tiny-demo`, measure it on held-out images and write it into the package with its model card.

    python -m tools.demo_checkpoint --out runs/demo
    python -m tools.demo_checkpoint --card             # the card alone, from the figures in the package

The three stages of the quickstart run with the steps of the `demo_*` configs: about twenty minutes on two
CPU cores. A run that is finished is not repeated, only measured and written again. What is written replaces
medmo_core/demo/files/: the checkpoint in bfloat16, held_out.json and the card, which takes its figures from there.
Nothing is replaced where the checkpoint is over 10 MB, answers its first question without a box, or scores otherwise
in bfloat16 than as trained. Research use only.
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from medmo_core.demo.checkpoint import FILES
from medmo_core.errors import exit_status
from medmo_recipes.commands.three_stages import run

from .publishing import FINAL, publish, refuse_other_runs, write_card

NAME = "python -m tools.demo_checkpoint"


def main(argv: Sequence[str] | None = None) -> int:
    """Train where nothing is trained yet, then publish; status 2 for a mistake that the caller can fix."""
    parser = argparse.ArgumentParser(
        prog=NAME, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shown = "(default: %(default)s)"
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help=f"folder of the run {shown}")
    parser.add_argument("--seed", type=int, default=0, help=f"of weights, data and sampling {shown}")
    parser.add_argument("--card", action="store_true", help="write the card anew, and nothing else")
    asked = parser.parse_args(argv)
    command = f"{NAME} {shlex.join(['--out', str(asked.out), '--seed', str(asked.seed)])}"

    def work() -> int:
        if asked.card:
            print(f"wrote {write_card(FILES)}")
            return 0
        if not (asked.out / FINAL).is_dir():
            run(asked.out, size="demo", seed=asked.seed)
        refuse_other_runs(asked.out, asked.seed)
        publish(asked.out, FILES, command=command)
        print(f"wrote {FILES}; commit the whole folder")
        return 0

    return exit_status(work)


if __name__ == "__main__":
    raise SystemExit(main())
