"""From a stage's command line to its run: print, dry-run or train."""

import sys
from collections.abc import Callable, Sequence

from medmo_core.data.validate import RecordError

from ..configs import CONFIGS
from .checkpoint import CheckpointError
from .command_line import format_config, read_command_line
from .config import ConfigError, RunConfig
from .distributed import ProcessFailed
from .dry_run import dry_run
from .run import STOPPED
from .skipped import BadData
from .watch import BadStep

USER_ERRORS = (ConfigError, CheckpointError, RecordError, BadData, BadStep, ProcessFailed, FileNotFoundError)
"""Errors whose message says all there is to know; anything else keeps its traceback."""


def launch(argv: Sequence[str] | None, *, stage: str, run: Callable[[RunConfig], bool], about: str | None) -> int:
    """Do what the command line of a stage asks for.

    Args:
        argv: arguments without the program's name; None = the process's own.
        stage: "align", "instruct" or "reinforce".
        run: trains; returns whether the last step was reached (False: asked to stop, and saved).
        about: the stage's docstring, shown by --help.

    Returns:
        The exit status: 0, 2 for a mistake that the user can mend (told in one line), 143 for a run asked to stop.
    """
    asked = read_command_line(argv, stage=stage, configs=CONFIGS, about=about)
    try:
        if asked.print_only:
            print(format_config(asked.config))
        elif asked.dry_run:
            print(dry_run(asked.config))
        elif not run(asked.config):
            return STOPPED
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
