"""The size of a picture without decoding it, where the kind of file allows."""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from .dicom import is_dicom
from .image import ImageError, load_image, safe_path
from .record import ImageRef
from .volume import is_volume

EXIF_ORIENTATION = 274
TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


def stored_size(reference: ImageRef, root: str | Path | None) -> tuple[int, int]:
    """Return (width, height) in px of a stored picture, before its crop.

    Args:
        reference: the file and what to take of it.
        root: data root of its path.

    Raises:
        ImageError: no such file, a path that leaves the root, or a file that is no picture.
    """
    file = safe_path(reference.path, root)
    if not file.is_file():
        raise ImageError(f"{reference.path}: no such file" + (f" under the data root {root}" if root else ""))
    if not is_volume(file) and not is_dicom(file):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of sizes that the loader checks when it decodes
                with Image.open(file) as image:
                    if reference.frame:
                        image.seek(reference.frame)
                    width, height = image.size
                    swaps = image.getexif().get(EXIF_ORIENTATION) in TRANSPOSED
                    return (height, width) if swaps else (width, height)
        except (UnidentifiedImageError, OSError, SyntaxError, EOFError, ValueError, Image.DecompressionBombError):
            pass  # the loader knows more kinds, and says best what is wrong
    loaded = load_image(
        reference.path,
        root=root,
        frame=reference.frame,
        slice_index=reference.slice_index,
        plane=reference.plane,
        window=reference.window,
    )
    return loaded.size
