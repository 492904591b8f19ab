"""Label maps: grey pictures with a value for each structure, read as they are."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .images.load import check_file, safe_path
from .images.loaded import MAX_PIXELS, ImageError, own_errors, silent_libraries
from .records.store import Root, folder_of, store_of

FORMATS = ("PNG", "TIFF", "BMP")
"""Formats that keep every value."""


def read_label_map(path: str, root: Root, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read a label map (H, W).

    Args:
        path: file, relative to the data root.
        root: data root, or the store that knows the file.
        max_pixels: larger maps are refused before they are decoded.

    Raises:
        ImageError: the path leaves the root, or the file is no grey picture of 8 bits that keeps every value.
    """
    store = store_of(root)
    if store is not None:
        with own_errors(path), store.open(path) as file:
            return _read(path, file, max_pixels)
    source = safe_path(path, folder_of(root))
    check_file(source, folder_of(root))
    return _read(path, source, max_pixels)


def _read(name: str, source: Path | BinaryIO, max_pixels: int) -> NDArray[np.uint8]:
    with own_errors(name, "the label map"), silent_libraries(), Image.open(source, formats=FORMATS) as image:
        if image.mode != "L":
            raise ImageError(
                f"{name}: a label map of mode {image.mode}, expected 8-bit grey (L) with a value for each structure; "
                "save it so without changing its values"
            )
        if image.width * image.height > max_pixels:
            raise ImageError(f"{name}: {image.width}x{image.height} px, expected at most {max_pixels} pixels")
        return np.array(image, dtype=np.uint8)
