"""The `medmo` command: one door to everything, each sub-command a thin call into its own file."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from medmo_core.notice import RESEARCH_ONLY


@dataclass(frozen=True)
class Command:
    """One sub-command: where its `main(argv)` lives and what `medmo --help` says of it."""

    module: str
    summary: str
    example: str


COMMANDS: dict[str, Command] = {
    "quickstart": Command(
        "medmo_recipes.commands.quickstart",
        "run all three stages on the embedded real images, evaluate, and write report.html",
        "medmo quickstart --out runs/quickstart",
    ),
    "train": Command(
        "medmo_recipes.commands.train",
        "run one stage: align, instruct or reinforce",
        "medmo train instruct --data my.jsonl --config tiny_instruct train.steps=200",
    ),
    "generate": Command(
        "medmo_recipes.commands.generate",
        "ask about images (PNG, JPEG, TIFF, DICOM, NIfTI): text, parsed boxes, overlay PNG",
        'medmo generate --checkpoint runs/quickstart/reinforce/final --image scan.dcm --prompt "Where is the liver?"',
    ),
    "evaluate": Command(
        "medmo_recipes.commands.evaluate",
        "score a checkpoint: VQA, grounding, reports, retrieval, with intervals and baselines",
        "medmo evaluate --checkpoint runs/quickstart/reinforce/final",
    ),
    "export": Command(
        "medmo_recipes.commands.export",
        "write a run's weights as an official Qwen3-VL folder and check that it reads back",
        "medmo export --run runs/my_run --out exported/",
    ),
    "embedded": Command(
        "medmo_recipes.commands.embedded",
        "paint a contact sheet of the embedded images with their boxes",
        "medmo embedded --out contact_sheet.png",
    ),
    "validate": Command(
        "medmo_recipes.commands.validate",
        "check data files of your own (JSONL, Parquet, tar) and explain every fault in them",
        "medmo validate my.jsonl",
    ),
    "doctor": Command(
        "medmo_core.doctor",
        "say what runs on this machine, op by op, and why",
        "medmo doctor",
    ),
}

FORMER_NAMES = {"sample": "embedded"}
"""Former name of a sub-command, still accepted -> its name."""

EPILOG = """examples:
{examples}

`medmo COMMAND --help` explains one command. Training at scale starts with torchrun:
  torchrun --nproc-per-node 8 -m medmo_recipes.align --config medmo_8b_align

{notice}
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the top-level parser; sub-commands parse their own words."""
    examples = "\n".join(f"  {command.example}" for command in COMMANDS.values())
    parser = argparse.ArgumentParser(
        prog="medmo",
        description="Train, measure and run multimodal medical models that point at what they say.",
        epilog=EPILOG.format(examples=examples, notice=RESEARCH_ONLY),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subparsers.add_parser(name, help=command.summary, add_help=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command.

    Args:
        argv: words after `medmo`; the process's own when None.

    Returns:
        The exit status: 0 when all went well, 2 for a mistake that the caller can fix (its message on stderr).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] and words[0] in FORMER_NAMES:
        print(f"medmo {words[0]} is now called medmo {FORMER_NAMES[words[0]]}", file=sys.stderr)
        words[0] = FORMER_NAMES[words[0]]
    known, rest = build_parser().parse_known_args(words[:1])
    rest = rest + words[1:]
    module = importlib.import_module(COMMANDS[known.command].module)
    user_errors = importlib.import_module("medmo_core.errors").USER_ERRORS  # late: --help need not wait for torch
    try:
        return int(module.main(rest) or 0)
    except user_errors as error:
        print(f"medmo {known.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
