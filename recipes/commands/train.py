"""`medmo train`: run one stage in this process, on the embedded data or on data files of your own."""

import argparse
import ast
import importlib
import importlib.resources
import sys
from collections.abc import Sequence

from ..configs import CONFIGS
from ..settings.command_line import read_command_line
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
    for path in arguments.data:
        chosen += ["--data", path]
    module, name = f"medmo_recipes.{arguments.stage}", arguments.stage
    # Help and mistakes first: the stage's own file waits for PyTorch.
    read_command_line([*chosen, *rest], stage=name, configs=CONFIGS, about=docstring_of(module))
    return int(importlib.import_module(module).main([*chosen, *rest]) or 0)


def docstring_of(module: str) -> str | None:
    """Read a module's docstring from its file, without running it."""
    package, _, name = module.rpartition(".")
    text = importlib.resources.files(package).joinpath(f"{name}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(text), clean=False)
