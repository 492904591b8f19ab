"""Memory of the pictures decoded last."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .images.digest import check_digest
from .images.load import load_whole
from .label_map import read_label_map
from .records.sample import ImageRef
from .records.store import Root


@dataclass
class PictureCache:
    """The pictures decoded last, so that crops of one file decode it once. Safe to share between threads."""

    max_bytes: int
    pictures: OrderedDict[tuple[Any, ...], NDArray[np.uint8]] = field(default_factory=OrderedDict)
    num_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __reduce__(self) -> tuple[Any, ...]:
        return PictureCache, (self.max_bytes,)  # another process decodes its own

    def load(self, image: ImageRef, root: Root) -> NDArray[np.uint8]:
        """Return the picture without its crop: (H, W, 3)."""
        # All of the reference but what says nothing of the whole picture: a setting added later is part of the key.
        key = (root, replace(image, crop=None, width=None, height=None, outlines=None))

        def decode() -> NDArray[np.uint8]:
            check_digest(image, root)
            return load_whole(image, root).pixels

        return self._kept(key, decode)

    def load_label_map(self, path: str, root: Root) -> NDArray[np.uint8]:
        """Return a label map: (H, W)."""
        return self._kept((root, "label map", path), lambda: read_label_map(path, root))

    def _kept(self, key: tuple[Any, ...], decode: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        with self.lock:
            if key in self.pictures:
                self.pictures.move_to_end(key)
                return self.pictures[key]
        pixels = decode()
        with self.lock:
            if pixels.nbytes <= self.max_bytes and key not in self.pictures:
                self.pictures[key] = pixels
                self.num_bytes += pixels.nbytes
                while self.num_bytes > self.max_bytes:
                    self.num_bytes -= self.pictures.popitem(last=False)[1].nbytes
        return pixels
