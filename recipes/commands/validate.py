"""`medmo validate`: check a JSONL file of samples and explain every fault, each with its line, field and fix."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from medmo_core.data.sources.jsonl import iter_faults


def main(argv: Sequence[str] | None = None) -> int:
    """Print every fault; 0 when there is none but warnings, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="medmo validate", description=__doc__)
    parser.add_argument("jsonl", type=Path, help="one sample per line")
    parser.add_argument("--root", type=Path, help="folder that image paths are relative to (default: the file's own)")
    arguments = parser.parse_args(argv)
    if not arguments.jsonl.is_file():
        raise FileNotFoundError(f"{arguments.jsonl}: no such file; expected a JSONL file with one sample per line")
    num_faults = num_warnings = 0
    for fault in iter_faults(arguments.jsonl, arguments.root or arguments.jsonl.parent):
        print(fault)
        if fault.level == "warning":
            num_warnings += 1
        else:
            num_faults += 1
    with arguments.jsonl.open(encoding="utf-8", errors="replace") as lines:
        num_samples = sum(1 for line in lines if line.strip())
    print(f"{arguments.jsonl}: {num_samples} samples, {num_faults} faults, {num_warnings} warnings")
    return 1 if num_faults else 0
