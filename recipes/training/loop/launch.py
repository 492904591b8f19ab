"""From a stage's command line to its run: print, dry-run or train."""

import sys
from collections.abc import Callable, Sequence

from medmo_core.data.records.faults import RecordError

from ...configs import CONFIGS
from ...settings.command_line import format_config, read_command_line
from ...settings.run_config import ConfigError, RunConfig
from ..checkpoints.checkpoints import CheckpointError
from ..distributed.world import ProcessFailed
from ..loading.skipped import BadData
from ..monitoring.spikes import BadStep
from ..sizing.dry_run import dry_run
from .run import STOPPED

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
