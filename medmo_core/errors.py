"""Errors that a user can act on: their message says all there is to know, so commands print it without a traceback."""

import errno
import os
import re
import sys
from collections.abc import Callable


class UserError(Exception):
    """Base of every error whose cause is a user's to fix: it names file or field, what was expected, and the fix.

    Classes that derive from it are also a `ValueError` or `RuntimeError`, for callers that know no more than those.
    """


class InputError(UserError, ValueError):
    """A file or an argument that cannot be used as it is."""


class BadStep(UserError, ValueError):
    """A training step that must not change the weights; the message names the samples."""


USER_ERRORS = (UserError, FileNotFoundError, ImportError)
"""What commands print in one line, with exit status 2. Anything else is a fault of the program and keeps its traceback.

A missing file and a missing optional library are named by Python and by libraries too, hence the last two. What the
system says of files (a full disk, a folder that may not be written) is known by number: `user_message`."""

OF_FILES = frozenset(
    getattr(errno, name)
    for name in (
        "EACCES", "EDQUOT", "EEXIST", "EFBIG", "EIO", "EISDIR", "ELOOP", "EMFILE", "ENAMETOOLONG", "ENFILE", "ENOENT",
        "ENOSPC", "ENOTDIR", "EPERM", "EROFS", "ESTALE",
    )
    if hasattr(errno, name)
)  # fmt: skip
IN_WORDS = re.compile(r"\(os error (\d+)\)")  # as libraries in Rust (safetensors, tokenizers) write the system's errors


def user_message(error: BaseException) -> str | None:
    """Return an error's message for users; None for a fault of the program, which keeps its traceback."""
    if isinstance(error, UserError):
        return str(error)
    place = error.filename if isinstance(error, OSError) else None
    number = error.errno if isinstance(error, OSError) else number_in_words(str(error))
    if number is not None and number in OF_FILES:
        return f"{os.fsdecode(place)}: {os.strerror(number)}" if place else os.strerror(number)
    return str(error) if isinstance(error, USER_ERRORS) else None


def exit_status(work: Callable[[], int]) -> int:
    """Run a command and return its exit status: 2, with its message on stderr, after an error that its user can fix."""
    try:
        return work()
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise  # a fault of the program keeps its traceback
        print(f"error: {message}", file=sys.stderr)
        return 2


def number_in_words(text: str) -> int | None:
    """Return the number of the system's error that a message of a library in Rust ends in; None without one."""
    found = IN_WORDS.search(text)
    return int(found.group(1)) if found else None
