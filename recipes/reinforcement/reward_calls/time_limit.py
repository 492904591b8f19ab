"""Bound the time of a call into code that is not ours.

Three lines of defence, since Python can end no thread and interrupt no C code that keeps the interpreter to itself:

1. In the main thread an alarm signal raises in the call itself. It ends Python code, sleeping, waiting for a socket,
   regular expressions and arithmetic with huge numbers, also where the call catches every `Exception`; it comes again
   each second, should the call catch that too.
2. A thread that wakes some seconds later, where the alarm could do nothing (another thread, C code that lets Python
   go on): it says what hung, prints where, and ends the process.
3. The same from a thread that needs no interpreter, for C code that never lets go of it: it prints where, and ends the
   process; what hung it cannot say.
"""

import faulthandler
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

GRACE_S = 5.0  # from one line of defence to the next
AGAIN_S = 1.0
STDERR = 2  # the descriptor itself, whatever stands in the place of sys.stderr
HUNG = 70  # exit status of a process that had to be ended


class TimeUp(TimeoutError):
    """A call took longer than it may."""


class _Interrupt(BaseException):
    """No `Exception`, so that the interrupted call does not take it for one of its errors."""


@contextmanager
def time_limit(seconds: float, what: str) -> Iterator[None]:
    """Interrupt what takes longer, or end the process where that cannot be interrupted.

    Args:
        seconds: allowed.
        what: name of the call for the message, such as "reward 'box'".

    Raises:
        TimeUp: it took longer; names the line that it was at.
    """

    def end_process() -> None:
        text = f"error: {what} took longer than {seconds:g} s and cannot be interrupted: the process ends here\n"
        os.write(STDERR, text.encode())
        faulthandler.dump_traceback(file=STDERR)
        os._exit(HUNG)

    watchdog = threading.Timer(seconds + GRACE_S, end_process)
    watchdog.daemon = True
    watchdog.start()
    faulthandler.dump_traceback_later(seconds + 2 * GRACE_S, exit=True, file=STDERR)
    try:
        with _alarm(seconds):
            yield
    except _Interrupt as error:
        raise TimeUp(f"{what} took longer than {seconds:g} s{error}") from error
    finally:
        faulthandler.cancel_dump_traceback_later()
        watchdog.cancel()


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise `_Interrupt` inside after some seconds; only the main thread has signals."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise _Interrupt("" if frame is None else f", at {Path(frame.f_code.co_filename).name}:{frame.f_lineno}")

    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    handler = signal.signal(signal.SIGALRM, interrupt)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_S)
    try:
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:  # also where the alarm came in between
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)
