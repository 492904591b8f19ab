"""Files and folders that outlive a crash: flushed to the disk, moved into place whole, moved away before deletion.

A name that begins with a dot is unfinished or on its way out, and no reader looks at it.
"""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a file, replacing an older one in one move."""
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(text, encoding="utf-8")
    flush(aside)
    aside.replace(path)
    flush(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a value like `write_text`."""
    write_text(path, json.dumps(value))


def publish(partial: Path, target: Path) -> None:
    """Move a finished folder to its name, in place of an older one there."""
    flush(partial)
    if target.exists():
        remove(target)
    partial.rename(target)
    flush(target.parent)


def remove(folder: Path) -> None:
    """Delete a folder; one interrupted in the middle leaves a hidden remainder, never a folder with half its files."""
    hidden = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(hidden, ignore_errors=True)  # the remainder of an earlier attempt
    folder.rename(hidden)
    flush(hidden.parent)
    shutil.rmtree(hidden)


def sweep(folder: Path, endings: Iterable[str] = (".partial", ".removed")) -> None:
    """Delete what interrupted writes and removals have left in `folder`."""
    for path in folder.glob(".*"):
        if path.name.endswith(tuple(endings)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
