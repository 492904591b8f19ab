"""`medmo validate`: check data files and explain every fault, each with its place, field and fix.

medmo validate my.jsonl
medmo validate tables/ --root images/
medmo validate "shards-{0000..0099}.tar"

Every image is decoded in full, as training would. Files of other tools' formats are recognised, with the command that
converts them. What one run leaves out because it is too long for it (data.max_tokens, train.tokens_per_batch) stands in
that run's skipped.jsonl.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medmo_core.printable import printable

if TYPE_CHECKING:
    from medmo_core.data.records.faults import Fault
    from medmo_core.data.sources.file_check import FileCheck

SECONDS_BETWEEN = 1.0  # two counts shown


def build_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        prog="medmo validate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="a JSONL file, Parquet files (a file, a folder, a pattern) or tar shards")
    parser.add_argument("--root", type=Path, help="folder that image paths are relative to (default: the first file's)")
    parser.add_argument(
        "--headers", action="store_true", help="read only the headers of images: faster, but finds no cut picture"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of text")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print every fault; 0 when there is none but warnings, 1 otherwise."""
    arguments = build_parser().parse_args(argv)
    from medmo_core.data.sources.file_check import FileCheck  # late: help need not wait for PyTorch
    from medmo_core.data.sources.open_source import record_files

    check = FileCheck(record_files(arguments.data, arguments.root), headers_only=arguments.headers)
    num_faults = num_warnings = 0
    listed: list[Fault] = []
    for fault in _with_progress(check):
        if arguments.json:
            listed.append(fault)
        else:
            print(fault)
        if fault.level == "warning":
            num_warnings += 1
        else:
            num_faults += 1
    if arguments.json:
        counts = {"samples": check.num_records, "faults": num_faults, "warnings": num_warnings}
        print(json.dumps({"data": arguments.data, **counts, "found": [vars(fault) for fault in listed]}, indent=2))
        return 1 if num_faults else 0
    print(f"{printable(arguments.data)}: {check.num_records} samples, {num_faults} faults, {num_warnings} warnings")
    return 1 if num_faults else 0


def _with_progress(check: FileCheck) -> Iterator[Fault]:
    """Yield the faults, and keep a count of the records read on a terminal's error stream."""
    told = time.monotonic()
    for fault in check.events():
        now = time.monotonic()
        if sys.stderr.isatty() and now - told > SECONDS_BETWEEN:
            told = now
            print(f"{check.num_records} samples read", end="\r", file=sys.stderr, flush=True)
        if fault is not None:
            yield fault
