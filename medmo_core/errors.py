"""Errors that a user can act on: their message says all there is to know, so commands print it without a traceback."""


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

A missing file and a missing optional library are named by Python and by libraries too, hence the last two."""
