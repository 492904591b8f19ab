"""`medmo train`: run one stage in this process, on the embedded data or on data files of your own."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from ..settings.stage import STAGES

EPILOG = """examples:
  medmo train instruct --data my.jsonl train.out_dir=runs/mine
  medmo train reinforce --config tiny_reinforce model.init=runs/mine
  medmo train instruct --config runs/mine/config.json train.out_dir=runs/again
  medmo train instruct --config medmo_4b_instruct --print     shows every setting and exits
  medmo train instruct --help                                 explains one stage

Several GPUs: torchrun --nproc-per-node 8 -m medmo_recipes.instruct --config medmo_8b_instruct
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Hand the words beside the stage's name to the stage's own `main`."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="medmo train", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=not any(word in STAGES for word in words),  # behind a stage, --help is the stage's
    )  # fmt: skip
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--config", help="name of a run (default: tiny_<stage>), or the config.json of one")
    parser.add_argument("--data", action="append", default=[], help="JSONL, Parquet or tar files; repeat for a mixture")
    arguments, rest = parser.parse_known_args(words)
    chosen = [] if arguments.config is None else ["--config", arguments.config]
    for name in arguments.data:
        chosen += ["--data", name]
    stage = importlib.import_module(f"medmo_recipes.{arguments.stage}")
    return int(stage.main([*chosen, *rest]) or 0)
