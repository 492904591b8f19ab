"""Libraries that a run needs only for some settings: imported then, quietly, or with a word on the extra."""

import importlib
import logging
from typing import Any

NOISY = ("torchao", "torch.utils._pytree")
"""Loggers that warn, at the import of torchao, of kernels for other machines and of what torch will deprecate."""


def import_optional(module: str, extra: str, setting: str) -> Any:
    """Import a module of an optional library.

    Args:
        module: dotted name.
        extra: of our package, that installs the library.
        setting: what asks for it, for the message.

    Raises:
        ImportError: it is not installed.
    """
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.split(".", 1)[0]
        raise ImportError(f'{setting} needs {library}: pip install "medmo[{extra}]"') from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
