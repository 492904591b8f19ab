"""`medmo train`: run one stage in this process, on the embedded data or on data files of your own."""

import argparse
import importlib
from collections.abc import Sequence

from ..settings.stage import STAGES

EPILOG = """examples:
  medmo train instruct --data my.jsonl train.out_dir=runs/mine
  medmo train reinforce --config tiny_reinforce model.init=runs/mine/final
  medmo train instruct --config medmo_4b_instruct --print     shows every setting and exits

Several GPUs: torchrun --nproc-per-node 8 -m medmo_recipes.instruct --config medmo_8b_instruct
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Hand the words to the stage's own `main`, with `--data` spelled as a source of the mixture."""
    parser = argparse.ArgumentParser(
        prog="medmo train", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--config", help="name of a run (default: tiny_<stage>)")
    parser.add_argument("--data", action="append", default=[], help="JSONL, Parquet or tar files; repeat for a mixture")
    arguments, overrides = parser.parse_known_args(argv)
    words = ["--config", arguments.config or f"tiny_{arguments.stage}"]
    for name in arguments.data:
        words += ["--data", name]
    stage = importlib.import_module(f"medmo_recipes.{arguments.stage}")
    return int(stage.main([*words, *overrides]) or 0)
