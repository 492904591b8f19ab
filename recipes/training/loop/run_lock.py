"""Lock on a run's folder, held by the main process for the life of the run: two runs never write into one folder.

It is the system's own lock (flock) on a file in the folder: it goes with the process that holds it, however that ends,
so what a killed run leaves behind locks nothing. The file also says who holds it, for the message to others.

On NFS the lock reaches other machines where the server's lock service runs (Linux passes flock on to it). A file system
that knows no locks is said aloud, and the run goes on without one.
"""

import errno
import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from ...settings.run_config import ConfigError

LOCK = ".lock"
WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_held: set[int] = set()
"""Handles of this process's locks."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder; the folder is made, and taken away again where nothing was written into it.

    Raises:
        ConfigError: another run holds it (the message names its process), or the folder cannot be written.
    """
    try:
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        handle = _take(folder / LOCK)
    except FileExistsError:
        raise ConfigError(f"train.out_dir: {folder} is a file, expected a folder to write the run into") from None
    except OSError as error:
        raise ConfigError(f"train.out_dir: {folder} cannot be written ({error.strerror}); choose another") from None
    try:
        yield
    finally:
        with suppress(OSError):
            if is_new and [path.name for path in folder.iterdir()] == [LOCK]:
                (folder / LOCK).unlink()
                folder.rmdir()
            else:
                os.ftruncate(handle, 0)
        _held.discard(handle)
        os.close(handle)


def _take(path: Path) -> int:
    """Return the handle of a lock file that is locked and names this process."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 1000, 0)
            os.close(handle)
            raise ConfigError(f"train.out_dir: {path.parent} is in use by {_describe(holder)}") from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                os.close(handle)
                raise
            told = f"{path.parent}: this file system knows no locks, so nothing here keeps a second run out"
            print(told, file=sys.stderr)
        # A run that ended without having written anything takes its folder away, and this file with it.
        if path.exists() and os.fstat(handle).st_ino == path.stat().st_ino:
            break
        os.close(handle)
        path.parent.mkdir(parents=True, exist_ok=True)
    _held.add(handle)
    holder = {"host": socket.gethostname(), "process": os.getpid(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(holder).encode(), 0)
    os.fsync(handle)  # a full disk shows here
    return handle


def _describe(holder: bytes) -> str:
    """Say who holds a lock, and what to do."""
    way_out = "wait for it, or end it; another train.out_dir starts a run beside it"
    try:
        who = "process {process} on {host}, since {since}".format(**json.loads(holder))
        return f"a run that is going on: {who}; {way_out}"
    except (ValueError, KeyError, TypeError):  # it has the lock and has not written its name yet
        return f"another run that has just begun; {way_out}"


def _leave_to_parent() -> None:
    """Close the copies that a forked process has: the lock must end with the process that took it."""
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
