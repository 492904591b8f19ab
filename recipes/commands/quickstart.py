"""`medmo quickstart`: three stages on the embedded real images, measured before and after each.

    medmo quickstart                          the tiny model, minutes on two CPU cores
    medmo quickstart --fast                   a minute: shows that the machinery runs, learns nothing

Writes under --out: align/, instruct/ and reinforce/ (each a whole run; reinforce/final is the checkpoint in the
official layout), metrics.json (`stages[name][metric] = {value, low, high, baseline, n, ...}`), held_out.png and
report.html. A folder that holds a quickstart already is refused. Research use only.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from medmo_core.notice import SHORT_NOTICE


def build_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        prog="medmo quickstart", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shown = "(default: %(default)s)"
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help=f"folder to write {shown}")
    parser.add_argument("--fast", action="store_true", help="a far smaller model for a few steps: see it move")
    parser.add_argument("--seed", type=int, default=0, help=f"of weights, data and sampling {shown}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything and say where the report is."""
    arguments = build_parser().parse_args(argv)
    from ..pages.quickstart_page import format_verdicts  # late: help need not wait for PyTorch
    from .three_stages import run

    outcome = run(arguments.out, size="debug" if arguments.fast else "tiny", seed=arguments.seed)
    print(format_verdicts(outcome))
    if arguments.fast:
        print("--fast learns nothing, so its verdicts are no; without --fast the model learns.")
    print(f"\nopen {arguments.out / 'report.html'}   ({SHORT_NOTICE})")
    return 0
