"""Files and folders that outlive a crash: flushed to the disk, moved into place atomically, hidden before deletion.

A name that begins with a dot is unfinished or on its way out, and no reader looks at it.
"""

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import UserError, number_in_words

AT_FDCWD, RENAME_EXCHANGE = -100, 2


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def aside(path: Path) -> Path:
    """Return the hidden name that this process prepares a file or folder under, beside its final name."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def shared_aside(path: Path) -> Path:
    """Return the hidden name that several processes together prepare a folder under, the same in each of them."""
    return path.with_name(f".{path.name}.partial")


def final_of(partial: Path) -> Path:
    """Return the path that `shared_aside` gave the hidden name of."""
    return partial.with_name(partial.name.removeprefix(".").removesuffix(".partial"))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the system that names no file, as of a full disk, name this one.

    Libraries in Rust (safetensors, tokenizers) have classes of their own for such errors; they become an OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise
    except Exception as error:
        number = None if isinstance(error, UserError) else number_in_words(str(error))
        if number is None:
            raise
        raise OSError(number, os.strerror(number), os.fspath(path)) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name to write a file under; on leaving, the file takes the place of an older one atomically.

    An error inside leaves the older file, or none, and nothing else.
    """
    partial = aside(path)
    try:
        with naming(path):
            yield partial
            flush(partial)
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    flush(path.parent)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill; on leaving, it takes the place of an older one atomically.

    An error inside leaves the older folder, or none, and nothing else.
    """
    partial = aside(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with naming(path):
            yield partial
        for written in partial.rglob("*"):
            flush(written)
        publish(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, replacing an older one atomically."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file like `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def mend_lines(path: Path) -> int:
    """Cut a last line that was not written to its end off a file of lines, so that more can be appended.

    Returns:
        The number of bytes that were cut off; 0 where the file is whole or is not there.
    """
    if not path.exists() or not path.stat().st_size:
        return 0
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        if file.read() == b"\n":
            return 0
        file.seek(0)
        content = file.read()
        whole = content.rfind(b"\n") + 1
        file.truncate(whole)
        os.fsync(file.fileno())
    return len(content) - whole


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write a value like `write_text`.

    Args:
        path: file to write.
        value: anything that JSON can hold.
        indent: spaces per level of a file that people read, which keeps letters beyond ASCII and ends in a newline;
            None: one line of ASCII.
    """
    end = "" if indent is None else "\n"
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=indent is None) + end)


def publish(partial: Path, target: Path) -> None:
    """Move a finished folder to its name; an older one there is replaced, and deleted afterwards.

    Where the system can exchange two names in one step (Linux), a reader sees the old folder or the new one at every
    moment. Elsewhere the name is missing between two renames, and an error at the second puts the old folder back.
    """
    flush(partial)
    if not target.exists():
        partial.rename(target)
        flush(target.parent)
        return
    old = partial
    if not _exchange(partial, target):
        old = _hidden(target)
        target.rename(old)
        try:
            partial.rename(target)
        except BaseException:
            old.rename(target)
            raise
    flush(target.parent)
    shutil.rmtree(old)


def remove(folder: Path) -> None:
    """Delete a folder; one interrupted in the middle leaves a hidden remainder, never a folder with half its files."""
    hidden = _hidden(folder)
    folder.rename(hidden)
    flush(hidden.parent)
    shutil.rmtree(hidden)


def sweep(folder: Path, endings: Iterable[str] = (".partial", ".removed")) -> None:
    """Delete what interrupted writes and removals have left in `folder`."""
    for path in folder.glob(".*"):
        if path.name.endswith(tuple(endings)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _hidden(folder: Path) -> Path:
    """Return a free name for a folder on its way out."""
    hidden = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(hidden, ignore_errors=True)  # the remainder of an earlier attempt
    return hidden


def _exchange(a: Path, b: Path) -> bool:
    """Exchange the names of two folders in one step; return False where the system or the disk cannot."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return bool(rename) and rename(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE) == 0
