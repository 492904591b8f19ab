"""`medmo validate`: check data files and explain every fault, each with its place, field and fix.

medmo validate my.jsonl
medmo validate tables/ --root images/
medmo validate "shards-{0000..0099}.tar"
"""

import argparse
from collections.abc import Sequence
from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        prog="medmo validate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="a JSONL file, Parquet files (a file, a folder, a pattern) or tar shards")
    parser.add_argument("--root", type=Path, help="folder that image paths are relative to (default: the first file's)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print every fault; 0 when there is none but warnings, 1 otherwise."""
    arguments = build_parser().parse_args(argv)
    from medmo_core.data.sources.file_check import FileCheck  # late: help need not wait for PyTorch
    from medmo_core.data.sources.open_source import record_files

    check = FileCheck(record_files(arguments.data, arguments.root))
    num_faults = num_warnings = 0
    for fault in check.faults():
        print(fault)
        if fault.level == "warning":
            num_warnings += 1
        else:
            num_faults += 1
    print(f"{arguments.data}: {check.num_records} samples, {num_faults} faults, {num_warnings} warnings")
    return 1 if num_faults else 0
