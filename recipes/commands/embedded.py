"""`medmo embedded`: paint a contact sheet of the embedded images with their boxes."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from medmo_core.datasets.embedded.contact_sheet import contact_sheet
from medmo_core.notice import SHORT_NOTICE
from medmo_core.printable import printable

from .generate import check_png


def build_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(prog="medmo embedded", description=__doc__)
    default = Path("contact_sheet.png")
    parser.add_argument("--out", type=Path, default=default, help="PNG to write (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Paint the sheet and print where it is."""
    arguments = build_parser().parse_args(argv)
    check_png(arguments.out)
    over = " over an earlier file" if arguments.out.exists() else ""
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(arguments.out)
    print(f"wrote {printable(str(arguments.out))}{over} ({SHORT_NOTICE})")
    return 0
