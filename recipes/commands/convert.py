"""`medmo convert`: write data of other tools as a JSONL file of records, with a reason for every row left out.

medmo convert coco annotations.json -o my.jsonl --images images/
medmo convert llava conversations.json -o my.jsonl
medmo convert sharegpt conversations.jsonl -o my.jsonl
medmo convert yolo data_set/ -o my.jsonl
medmo convert csv answers.csv -o my.jsonl
medmo convert dicomdir study/ -o my.jsonl

No split is made up: state one per record (train, val, test), with all pictures of a patient on one side.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medmo_core.errors import InputError
from medmo_core.printable import printable

if TYPE_CHECKING:
    from medmo_core.convert.outcome import LeftOut

FORMATS = ("coco", "llava", "sharegpt", "yolo", "csv", "dicomdir")


def build_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        prog="medmo convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("format", choices=FORMATS, help="format of IN")
    parser.add_argument("source", metavar="IN", type=Path, help="file or folder to read")
    parser.add_argument("-o", "--out", type=Path, required=True, help="JSONL file to write")
    parser.add_argument("--images", type=Path, help="folder that picture names are relative to (default: that of IN)")
    parser.add_argument("--question", help="question of records whose format has none")
    parser.add_argument("--answer", help="answer to it, for dicomdir")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Convert, name what was left out on the error stream, and print the counts and the next command."""
    arguments = build_parser().parse_args(argv)
    from medmo_core.convert.run import convert  # late: help need not wait for PyTorch

    if arguments.out.suffix.lower() != ".jsonl" or arguments.out.is_dir():
        raise InputError(f"-o {arguments.out}: expected the name of a JSONL file, such as my.jsonl")
    replaced = arguments.out.exists()
    counts = convert(
        arguments.format,
        arguments.source,
        arguments.out,
        pictures=arguments.images,
        question=arguments.question,
        answer=arguments.answer,
        report=_print_left_out,
    )
    if replaced:
        print(f"wrote over an earlier {printable(str(arguments.out))}")
    num_rows = counts.written + counts.rows_left_out
    print(
        f"{printable(str(arguments.source))}: {num_rows} rows read, {counts.written} records written with "
        f"{counts.boxes} boxes; left out: {counts.rows_left_out} rows, {counts.parts_left_out} boxes or other parts"
    )
    is_own = counts.root.resolve() == arguments.out.parent.resolve()
    root = "" if is_own else f" --root {printable(str(counts.root))}"
    print(f"next: medmo validate {printable(str(arguments.out))}{root}")
    return 0


def _print_left_out(left_out: LeftOut) -> None:
    print(printable(f"left out: {left_out.what}: {left_out.reason}"), file=sys.stderr)
