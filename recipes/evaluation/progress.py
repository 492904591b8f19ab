"""Progress of an evaluation: one line on the terminal, which moves there and is repeated in a log."""

import sys
import time

REPEAT_S = 10.0  # where output is no terminal (a file, CI) the line is repeated this often


class ProgressLine:
    """A line on standard error; a callable in the shape of `ask.OnProgress`."""

    def __init__(self) -> None:
        self._shown_at, self._width = 0.0, 0

    def __call__(self, part: str, done: int, total: int) -> None:
        """Show that so many of a part's questions are answered."""
        line, now = f"{part}: {done} of {total}", time.monotonic()
        if sys.stderr.isatty():
            print("\r" + line.ljust(self._width), end="", file=sys.stderr, flush=True)
            self._width = len(line)
        elif now - self._shown_at >= REPEAT_S:
            print(line, file=sys.stderr, flush=True)
            self._shown_at = now

    def close(self) -> None:
        """Take the line off the terminal."""
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=sys.stderr, flush=True)
            self._width = 0
