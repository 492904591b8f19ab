"""From a stage's command line to its run: print, dry-run or train."""

from collections.abc import Callable, Sequence

from ..configs import CONFIGS
from .command_line import format_config, read_command_line
from .config import RunConfig
from .dry_run import dry_run
from .run import STOPPED


def launch(argv: Sequence[str] | None, *, stage: str, run: Callable[[RunConfig], bool], about: str | None) -> int:
    """Do what the command line of a stage asks for.

    Args:
        argv: arguments without the program's name; None = the process's own.
        stage: "align", "instruct" or "reinforce".
        run: trains; returns whether the last step was reached (False: asked to stop, and saved).
        about: the stage's docstring, shown by --help.

    Returns:
        The exit status: 0, or 143 for a run that was asked to stop.
    """
    asked = read_command_line(argv, stage=stage, configs=CONFIGS, about=about)
    if asked.print_only:
        print(format_config(asked.config))
    elif asked.dry_run:
        print(dry_run(asked.config))
    elif not run(asked.config):
        return STOPPED
    return 0
