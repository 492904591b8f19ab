"""Result of every image reader, and the one error they raise."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...printable import printable
from .geometry import Geometry

SAFE_FIELDS = ("kind", "modality", "body_part", "view", "laterality", "spacing_mm", "windows", "num_frames", "plane")

MAX_PIXELS = 100_000_000
"""Largest number of pixels that a reader accepts, unless its caller says otherwise."""

COPY_AGAIN = "copy it again from its source, or leave it out"


class ImageError(InputError):
    """An image cannot be read as asked; the message names file and fix, never what a header says of a person."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))  # a file's name may hold anything


@contextmanager
def own_errors(name: object, what: str = "the picture") -> Iterator[None]:
    """Turn whatever a library raises about a file into an `ImageError`: libraries have dozens of ways to say "damaged".

    Args:
        name: file, for the message.
        what: name of the thing that is read.

    Raises:
        ImageError: anything but a missing library was raised.
    """
    try:
        yield
    except (ImageError, ImportError):
        raise
    except InputError as error:
        raise ImageError(f"{name}: {error}") from None
    except OSError as error:
        if error.errno is not None:  # the system's word, not a library's
            raise ImageError(f"{name}: cannot be read ({error.strerror}); check path and permissions") from None
        raise ImageError(f"{name}: {what} is truncated or damaged; {COPY_AGAIN}") from None
    except Exception as error:  # the text of the error may quote the header
        kind = type(error).__name__
        raise ImageError(f"{name}: {what} is truncated, damaged or of an odd kind ({kind}); {COPY_AGAIN}") from None


class _Silence:
    """Count of readers at work in all threads: the first one in silences the libraries, the last one out restores."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.num_readers = 0
        self.caught = warnings.catch_warnings()
        self.loggers = [logging.getLogger(name) for name in ("pydicom", "nibabel.global", "tifffile")]
        self.were_disabled = [False for _ in self.loggers]

    def enter(self) -> None:
        with self.lock:
            self.num_readers += 1
            if self.num_readers == 1:
                self.caught = warnings.catch_warnings()
                self.caught.__enter__()
                warnings.simplefilter("ignore")
                self.were_disabled = [logger.disabled for logger in self.loggers]
                for logger in self.loggers:
                    logger.disabled = True

    def leave(self) -> None:
        with self.lock:
            self.num_readers -= 1
            if self.num_readers == 0:
                for logger, was_disabled in zip(self.loggers, self.were_disabled, strict=True):
                    logger.disabled = was_disabled
                self.caught.__exit__(None, None, None)


_SILENCE = _Silence()


@contextmanager
def silent_libraries() -> Iterator[None]:
    """Keep reading libraries from warning and logging: what they say quotes the file's header. Safe across threads."""
    _SILENCE.enter()
    try:
        yield
    finally:
        _SILENCE.leave()


@dataclass(frozen=True)
class LoadedImage:
    """One picture ready for a model.

    Shapes: pixels (H, W, 3) uint8 RGB.

    Attributes:
        pixels: the picture.
        geometry: where it lies in the patient; None where the file does not say.
        info: facts that name nobody: keys of `SAFE_FIELDS` only. `spacing_mm` is (x, y), `windows` the file's own
            (center, width) pairs.
    """

    pixels: NDArray[np.uint8]
    geometry: Geometry | None = None
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unsafe = set(self.info) - set(SAFE_FIELDS)
        assert not unsafe, f"fields {unsafe} may not leave a reader"

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]
