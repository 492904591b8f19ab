"""Checksum of the bytes of a stored picture, read piece by piece."""

from __future__ import annotations

import hashlib
from typing import BinaryIO

from ..records.sample import ImageRef
from ..records.store import Root, store_of
from .load import safe_path
from .loaded import ImageError


def open_bytes(image: ImageRef, root: Root) -> BinaryIO:
    """Open the file or stored picture of a reference.

    Raises:
        ImageError: it is not there, or lies outside the root.
    """
    store = store_of(root)
    if store is not None:
        return store.open(image.path)
    try:
        return safe_path(image.path, root).open("rb")  # type: ignore[arg-type]
    except OSError as error:
        raise ImageError(f"{image.path}: cannot be read ({error.strerror or type(error).__name__})") from None


def digest_of(image: ImageRef, root: Root) -> str:
    """Return the SHA-256 of a picture's bytes in hexadecimal digits.

    Raises:
        ImageError: they cannot be read.
    """
    with open_bytes(image, root) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


def check_digest(image: ImageRef, root: Root) -> None:
    """Compare a picture with the checksum that its record states, where it states one.

    Raises:
        ImageError: they differ, or the picture cannot be read.
    """
    if image.sha256 is None:
        return
    found = digest_of(image, root)
    if found != image.sha256.lower():
        raise ImageError(
            f"{image.path}: its sha256 is {found}, the record says {image.sha256}; restore the file, or update it"
        )
