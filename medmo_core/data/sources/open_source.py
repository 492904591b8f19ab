"""Opening of data sources by name: JSONL, Parquet or tar shards, by the ending of the name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ...errors import InputError
from .foreign import FORMATS, command, folder_format
from .jsonl import JsonlFiles
from .parquet import ParquetFiles
from .record_source import RecordFiles, RecordSource
from .webdataset import TarFiles

NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")
EXPECTED = "a JSONL file, Parquet files (a file, a folder, a pattern) or tar shards (shards-{0000..0099}.tar)"


def open_source(
    name: str,
    root: str | Path | None = None,
    *,
    split: str | None = None,
    crops: bool = False,
    index_folder: Path | None = None,
) -> RecordSource:
    """Open data files by name.

    Args:
        name: a file; a folder of Parquet files; or several files of one kind as a pattern (`*`, `?`) or with numbers in
            braces (`{0000..0099}`), each of which must exist.
        root: folder that image paths are relative to; None: the first file's own.
        split: split to serve, see `RecordSource`.
        crops: show random crops, see `RecordSource`.
        index_folder: folder for the index of the files, see `RecordSource`.

    Raises:
        ValueError: no such file, or files of several kinds.
        RecordError: a record that cannot be used.
    """
    return RecordSource(record_files(name, root), split=split, crops=crops, index_folder=index_folder)


def record_files(name: str, root: str | Path | None = None) -> RecordFiles:
    """Return the files that a name means; see `open_source`."""
    paths = find_files(name)
    folder = paths[0].parent if root is None else Path(root)
    kinds = {path.suffix.lower() for path in paths}
    if len(kinds) > 1:
        raise InputError(f"{name} means files of several kinds ({', '.join(sorted(kinds))}); give each kind a name")
    if kinds == {".parquet"}:
        return ParquetFiles(tuple(paths), folder)
    if kinds == {".tar"}:
        return TarFiles(tuple(paths))
    if len(paths) > 1:
        raise InputError(f"{name} means {len(paths)} files; several files of one source are Parquet or tar files")
    return JsonlFiles(paths[0], folder)


def find_files(name: str) -> list[Path]:
    """Return the files that a name means, in order of name.

    Raises:
        ValueError: there is none, or one of a range is missing.
    """
    if not name.strip():
        raise InputError(f"no data file is named; expected {EXPECTED}")
    if NUMBERS.search(name):
        paths = [Path(text) for text in _numbered(name)]
        if not paths:
            raise InputError(f"{name} means no file: a range begins with its smaller number, as in {{0000..0099}}")
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise InputError(f"{missing[0]} is no file, one of {len(missing)} missing of {len(paths)} in {name}")
        return paths
    path = Path(name)
    if path.is_file():
        return [path]
    found = path.glob("*.parquet") if path.is_dir() else _matching(path)
    paths = sorted(file for file in found if file.is_file())
    other = folder_format(path) if path.is_dir() and not paths else None
    if other is not None:
        raise InputError(f"{name} is {FORMATS[other]}; expected {EXPECTED}; fix: {command(other, path)}")
    if not paths:
        what = "is a folder without Parquet files" if path.is_dir() else "is no file"
        own = min(path.glob("*.jsonl"), default=None) if path.is_dir() else None
        raise InputError(f"{name} {what}; expected {EXPECTED}" + (f"; fix: name {own}" if own else ""))
    return paths


def _matching(pattern: Path) -> Iterable[Path]:
    if not any(letter in str(pattern) for letter in "*?["):
        return ()
    return Path(pattern.anchor or ".").glob(str(pattern.relative_to(pattern.anchor)))


def _numbered(name: str) -> list[str]:
    """Write out every range of numbers in braces, with the leading zeros of its first."""
    match = NUMBERS.search(name)
    if match is None:
        return [name]
    first, last = match.groups()
    numbers = range(int(first), int(last) + 1)
    rests = _numbered(name[match.end() :])
    return [f"{name[: match.start()]}{number:0{len(first)}d}{rest}" for number in numbers for rest in rests]
