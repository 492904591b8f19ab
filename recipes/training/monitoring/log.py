"""Log of a run: metrics as JSON lines, TensorBoard when installed, one live progress line; main process only."""

import json
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

from medmo_core.durable import mend_lines, naming
from medmo_core.errors import InputError
from medmo_core.optional import how_to_install
from medmo_core.printable import printable_lines

from ..distributed.world import World

METRICS_FILE = "metrics.jsonl"
REPEAT_S = 10.0  # where output is no terminal (a file, CI) the progress line is repeated this often
SHOWN = ("loss", "reward", "val_loss")  # what the progress line shows, when present


def duration(seconds: float) -> str:
    """Write a time as 45s, 3m05s or 2h07m."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def count(number: float) -> str:
    """Write a count as 950, 12.3k, 4.44M or 8.77B."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"


class RunLog:
    """Log of one run: metrics.jsonl, tensorboard/ and the progress line.

    Lines are appended and flushed one by one: a stopped run loses nothing, a resumed one continues the file.

    Args:
        out_dir: the run's folder; created.
        world: processes of the run, of which the main one writes.
        steps: total number of steps, for the time left.
        title: head of the progress line.
        quiet: whether the progress line is left out (files are written all the same).
    """

    def __init__(self, out_dir: Path, world: World, *, steps: int, title: str, quiet: bool = False) -> None:
        self.out_dir, self.steps, self.title = Path(out_dir), steps, title
        self.writes, self._shows = world.is_main, world.is_main and not quiet
        self._started, self._first_step, self._last_shown = time.perf_counter(), -1, 0.0
        self._width = 0
        self._metrics: IO[str] | None = None
        self._board: Any = None
        if self.writes:
            self.out_dir.mkdir(parents=True, exist_ok=True)
            self._metrics = self._open_metrics(self.out_dir / METRICS_FILE)
            self._board = self._open_board()

    def _open_metrics(self, path: Path) -> IO[str]:
        """Open the file of metrics to append to it, having checked the lines of the run so far.

        Raises:
            InputError: a line before the last is no JSON object; the run's summary would fail on it at the end.
        """
        cut = mend_lines(path)
        if cut:
            self.say(f"{path}: the last line was cut short ({cut} bytes, as a crash leaves it) and has been taken off")
        if path.exists():
            read_metrics(path)
        return path.open("a", encoding="utf-8")

    def _open_board(self) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.say(f"no TensorBoard files: {how_to_install('demo')}")
            return None
        return SummaryWriter(str(self.out_dir / "tensorboard"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def say(self, text: str) -> None:
        """Print a message on its own line, above the progress line."""
        if self._shows:
            self._clear()
            print(printable_lines(text), file=sys.stderr, flush=True)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers of a step and move the progress line.

        Args:
            step: 1-based number of finished steps.
            values: name -> number; "tokens_per_s" and the names in SHOWN appear in the progress line.
        """
        if self._metrics is None:
            return
        self._write({"step": step, **values})
        if self._board is not None:
            with naming(self.out_dir / "tensorboard"):
                for name, value in values.items():
                    self._board.add_scalar(name, value, step)
        self._progress(step, values)

    def event(self, name: str, **values: Any) -> None:
        """Record something that is not a number: a resume, a stop, samples left out."""
        if self._metrics is not None:
            self._write({"event": name, **values})

    def _write(self, line: Mapping[str, Any]) -> None:
        assert self._metrics is not None
        with naming(self.out_dir / METRICS_FILE):
            self._metrics.write(json.dumps(line) + "\n")
            self._metrics.flush()

    def _progress(self, step: int, values: Mapping[str, float]) -> None:
        now = time.perf_counter()
        if self._first_step < 0:  # time left counts from the second step on: the first one warms up
            self._first_step, self._started = step, now
        if not self._shows or (not sys.stderr.isatty() and now - self._last_shown < REPEAT_S and step < self.steps):
            return
        self._last_shown = now
        parts = [f"{self.title} {step}/{self.steps}"]
        parts += [f"{name} {values[name]:.4g}" for name in SHOWN if name in values]
        if "tokens_per_s" in values:
            parts.append(f"{count(values['tokens_per_s'])} tokens/s")
        if "mfu" in values:
            parts.append(f"MFU {values['mfu']:.1%}")
        if step > self._first_step:
            rate = (now - self._started) / (step - self._first_step)
            parts.append(f"{duration(rate * (self.steps - step))} left")
        line = "  ".join(parts)
        if not sys.stderr.isatty():
            print(line, file=sys.stderr, flush=True)
            return
        line = line[: shutil.get_terminal_size().columns - 1]
        print("\r" + line.ljust(self._width), end="", file=sys.stderr, flush=True)
        self._width = len(line)

    def _clear(self) -> None:
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=sys.stderr)
            self._width = 0

    def close(self) -> None:
        """Finish the progress line and close the files."""
        if self._width:
            print(file=sys.stderr)
            self._width = 0
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        if self._board is not None:
            self._board.close()
            self._board = None


def read_metrics(path: Path) -> tuple[list[dict[str, float]], list[dict[str, Any]]]:
    """Return the lines of metrics by step, each step as it was done last, and the events in order.

    Raises:
        InputError: a line is none that a run writes.
    """
    lines: dict[int, dict[str, float]] = {}
    events = []
    for number, text in enumerate(path.read_bytes().splitlines(), start=1):
        values = _metrics_line(text, f"{path}:{number}")
        if "event" in values:
            events.append(values)
        else:
            lines[values["step"]] = values  # a resumed run may do steps again
    return [lines[step] for step in sorted(lines)], events


def _metrics_line(text: bytes, where: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError:  # UnicodeDecodeError too
        values = None
    if isinstance(values, dict) and ("event" in values or isinstance(values.get("step"), int)):
        return values
    raise InputError(f"{where}: no line of metrics, expected a JSON object with a step or an event; delete the line")
