"""Figures of the project's files, measured from the files themselves, of this checkout or of another.

    python3 -m tools.measure_house                                   # a table
    python3 -m tools.measure_house --root ../other --json old.json
    python3 -m tools.measure_house --beside old.json                 # old and new; exit status 1 where one is worse
    python3 -m tools.measure_house --list docstrings [PATH ...]      # file:line of every phrase that breaks the style

From the root of the repository, with any Python from 3.11 on: only the standard library is needed. No file is imported
or run: every figure is read from the syntax trees. The counting rules stand in `tools/house/`.
"""

import argparse
import gc
import sys
from collections.abc import Sequence
from pathlib import Path

from .house import table
from .house.docstrings import docstring_figures, offences
from .house.figures import measure
from .house.sources import FOLDERS, LIBRARY, SHIPPED, of_parts, sources

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


def show(root: Path, json_file: Path | None, old: Path | None) -> int:
    """Measure a checkout and print its figures.

    Args:
        root: folder of the checkout.
        json_file: JSON file to write the figures to; None: none.
        old: JSON file of an earlier measurement to compare with; None: none.

    Returns:
        The exit status, 1 where a figure is worse than the earlier one.
    """
    figures = measure(root)
    if json_file:
        table.write(figures, json_file)
    if not old:
        print(table.table(figures))
        return 0
    text, worse = table.beside(table.read(old), figures)
    print(text)
    if worse:
        print(f"worse: {', '.join(item.key for item in worse)}", file=sys.stderr)
    return 1 if worse else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool.

    Args:
        arguments: words of the command line; None: those of the process.

    Returns:
        The exit status; 2 for a folder that is no checkout.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", help="with --list: beginnings of the paths to list")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of the checkout; default: this one")
    parser.add_argument("--json", type=Path, help="JSON file to write the figures to")
    parser.add_argument("--beside", type=Path, metavar="OLD.json", help="figures to compare with")
    parser.add_argument("--list", choices=["docstrings"], help="print the offenders instead of the figures")
    words = parser.parse_args(arguments)
    if not of_parts(sources(words.root), LIBRARY):
        parser.error(
            f"no Python file of the library below {words.root}: expected {', '.join(FOLDERS[p] for p in LIBRARY)}"
        )
    if words.list:
        return list_docstrings(words.root.resolve(), words.paths)
    return show(words.root.resolve(), words.json, words.beside)


if __name__ == "__main__":
    gc.disable()  # nothing made here is garbage before the end, and looking for it doubles the time of parsing
    sys.exit(main())
