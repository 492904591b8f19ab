"""Figures of the project's files, measured from the files themselves.

    python tools/measure_house.py --list docstrings [PATH ...]    # file:line of every phrase that breaks the style
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from house.docstrings import docstring_figures, offences
from house.sources import SHIPPED, of_parts, sources

ROOT = Path(__file__).resolve().parents[1]


def list_docstrings(root: Path, paths: Sequence[str]) -> int:
    """Print file:line of every phrase that breaks the style, and their number by rule on stderr.

    Args:
        root: folder of the checkout.
        paths: beginnings of the paths to list, seen from the root; none: all.

    Returns:
        The exit status, 1 where there is one.
    """
    files = of_parts(sources(root), SHIPPED)
    found = offences(file for file in files if not paths or file.name.startswith(tuple(paths)))
    print(*found, sep="\n")
    for rule, count in docstring_figures(found).items():
        print(f"{count:5} {rule}", file=sys.stderr)
    return 1 if found else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool.

    Args:
        arguments: words of the command line; None: those of the process.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", help="with --list: beginnings of the paths to list")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of the checkout")
    parser.add_argument("--list", choices=["docstrings"], help="print the offenders instead of the figures")
    words = parser.parse_args(arguments)
    return list_docstrings(words.root.resolve(), words.paths)


if __name__ == "__main__":
    sys.exit(main())
