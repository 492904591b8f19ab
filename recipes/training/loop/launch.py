"""Launch of a stage from its command line: print the config, dry-run, or train."""

import sys
from collections.abc import Callable, Sequence

from medmo_core.errors import user_message
from medmo_core.printable import printable_lines

from ...configs import CONFIGS
from ...settings.command_line import format_config, read_command_line
from ...settings.run_config import RunConfig
from ..sizing.dry_run import dry_run
from .run import STOPPED


class UnexpectedExit(RuntimeError):
    """The end of the program that something within a run asked for; its traceback shows what."""


def launch(argv: Sequence[str] | None, *, stage: str, run: Callable[[RunConfig], bool], about: str | None) -> int:
    """Do what the command line of a stage asks for.

    Args:
        argv: arguments without the program's name; None = the process's own.
        stage: "align", "instruct" or "reinforce".
        run: function that trains and returns whether the last step was reached (False: asked to stop, and saved).
        about: the stage's docstring, shown by --help.

    Returns:
        The exit status: 0, 2 for a mistake that the user can fix (its message on stderr), 143 for a run asked to stop.
    """
    asked = read_command_line(argv, stage=stage, configs=CONFIGS, about=about)
    try:
        if asked.print_only:
            print(format_config(asked.config))
        elif asked.dry_run:
            described = dry_run(asked.config)
            print(described.text)
            if described.problem:
                print(f"error: {described.problem}", file=sys.stderr)
                return 2
        elif not run(asked.config):
            return STOPPED
    except SystemExit as end:  # of a reward, a library or a data set: the run is not over
        raise UnexpectedExit(f"something in the run called sys.exit({end.code!r}): it has not reached its end") from end
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        print(f"error: {printable_lines(message)}", file=sys.stderr)
        return 2
    return 0
