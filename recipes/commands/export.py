"""`medmo export`: write a run's weights as an official Qwen3-VL folder, and check that it reads back bit for bit.

    medmo export --run runs/my_run --out exported/
    medmo export --run runs/my_run --step 400 --out exported/ --dtype bfloat16

The folder holds config.json, safetensors, tokenizer, image processor settings and medmo_profile.json; transformers, and
what reads its layout, loads it as it is. A run that is not finished exports its newest checkpoint.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from medmo_core.notice import SHORT_NOTICE


def build_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        prog="medmo export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, help="a run's folder, one of its checkpoints, or an official folder")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not hold anything yet")
    parser.add_argument("--step", type=int, help="a checkpoint's step (default: final/, else the newest checkpoint)")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32", "float64"), help="cast the weights (default: as they are stored)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Export as the command line says; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    from .official_export import export, find_source  # late: help need not wait for PyTorch

    source = find_source(arguments.run, arguments.step)
    written = export(source, arguments.out, dtype=arguments.dtype)
    print(f"exported {source} to {written} and read it back: every tensor is identical ({SHORT_NOTICE})")
    return 0
