"""The names of the three stages, in a file that a command line can read before anything heavy is loaded."""

from typing import Literal, get_args

Stage = Literal["align", "instruct", "reinforce"]
STAGES: tuple[Stage, ...] = get_args(Stage)
