"""The `medmo` command: one door to everything, each sub-command a thin call into its own file."""

import argparse
import importlib
import os
import select
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from medmo_core.errors import user_message
from medmo_core.nearest import nearest_name
from medmo_core.notice import RESEARCH_ONLY
from medmo_core.optional import version_of
from medmo_core.printable import printable, printable_lines

MISTAKE, INTERRUPTED, NO_READER = 2, 130, 141
"""Exit status where the caller can fix it; the other two as shells give them for the signals INT and PIPE."""


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
        'medmo generate --image scan.dcm --prompt "Where is the liver?"',
    ),
    "evaluate": Command(
        "medmo_recipes.commands.evaluate",
        "score a checkpoint: VQA, grounding, reports, retrieval, with intervals and baselines",
        "medmo evaluate --checkpoint runs/quickstart/reinforce",
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
    "convert": Command(
        "medmo_recipes.commands.convert",
        "write data of other tools (COCO, LLaVA, ShareGPT, YOLO, CSV, DICOM folders) as records",
        "medmo convert coco annotations.json -o my.jsonl",
    ),
    "doctor": Command(
        "medmo_core.__main__",
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
    version = f"medmo {version_of('medmo') or '(not installed)'}, torch {version_of('torch') or '(not installed)'}"
    parser.add_argument("--version", action="version", version=version)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subparsers.add_parser(name, help=command.summary, add_help=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command.

    Args:
        argv: words after `medmo`; the process's own when None.

    Returns:
        The exit status: 0 when all went well, 2 for a mistake that the caller can fix (its message on stderr), 130 for
        a run that was interrupted, 141 where nobody reads what is printed any more.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] and words[0] in FORMER_NAMES:
        print(f"medmo {words[0]} is now called medmo {FORMER_NAMES[words[0]]}", file=sys.stderr)
        words[0] = FORMER_NAMES[words[0]]
    try:
        status = _run(words)
        sys.stdout.flush()  # here, where a reader that is gone is noticed quietly
    except KeyboardInterrupt:
        print(f"\nmedmo {' '.join(words[:1])}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        if not _reader_is_gone():
            raise  # some other pipe, such as one between processes
        return NO_READER
    return status


def _run(words: list[str]) -> int:
    """Open the door that the words name."""
    if not words:
        build_parser().print_help()
        return 0
    name = words[0]
    if not name.startswith("-") and name not in COMMANDS:
        near = nearest_name(name, COMMANDS)
        hint = f"did you mean `medmo {near}`?" if near else f"there are: {', '.join(COMMANDS)}"
        print(f"medmo: no command '{printable(name)}'; {hint}", file=sys.stderr)
        return MISTAKE
    try:
        build_parser().parse_known_args(words[:1])  # answers --help and --version
        return int(importlib.import_module(COMMANDS[name].module).main(words[1:]) or 0)
    except SystemExit:
        sys.stdout.flush()  # a page of help may be read in part as well
        raise
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        print(f"medmo {name}: {printable_lines(message)}", file=sys.stderr)  # ids, labels, paths in it may be anything
        return MISTAKE


def _reader_is_gone() -> bool:
    """Say whether it was standard output that broke; if so, leave nothing for Python to write at its end."""
    try:
        stream = sys.stdout.fileno()
    except (OSError, ValueError):  # not a stream of the system's
        return False
    watch = select.poll()
    watch.register(stream, 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in watch.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    return True


if __name__ == "__main__":
    raise SystemExit(main())
