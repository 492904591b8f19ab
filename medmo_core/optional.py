"""Optional libraries: imported where they are used, quietly, with an error that names the extra to install."""

import importlib
import importlib.metadata
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NOISY = ("torchao", "torch.utils._pytree")
"""Loggers that warn, at the import of torchao, of kernels for other machines and of what torch will deprecate."""


def import_optional(module: str, extra: str, needed_by: str) -> Any:
    """Import a module of an optional library.

    Args:
        module: dotted name.
        extra: name of the extra of our package that installs the library.
        needed_by: setting or task that asks for the library, for the message: "lora.rank", "scan.dcm: reading DICOM".

    Raises:
        ModuleNotFoundError: it is not installed; names the library and the extra.
    """
    try:
        if module in sys.modules:
            return importlib.import_module(module)
        with _quiet(NOISY):
            return importlib.import_module(module)
    except ImportError as error:
        raise ModuleNotFoundError(missing(module, extra, needed_by)) from error


def missing(module: str, extra: str, needed_by: str) -> str:
    """Return the message for an optional library that is not installed; see `import_optional`."""
    library = module.split(".", 1)[0].replace("_", "-")
    return f"{needed_by} needs {library}: {how_to_install(extra)}"


def how_to_install(extra: str) -> str:
    """Return the command that installs the libraries of an extra."""
    return f'pip install "medmo[{extra}]"'


def version_of(distribution: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


@contextmanager
def _quiet(names: tuple[str, ...]) -> Iterator[None]:
    """Let loggers report errors only."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
