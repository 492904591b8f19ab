"""Checksum of the bytes of a stored picture, read piece by piece; of a folder of slices, of all of them."""

from __future__ import annotations

import hashlib
from pathlib import PurePath
from typing import BinaryIO

from ..records.sample import ImageRef
from ..records.store import Root, folder_of, store_of
from .dicom_series import is_series, read_series
from .load import check_file, safe_path
from .loaded import ImageError, own_errors


def open_bytes(image: ImageRef, root: Root) -> BinaryIO:
    """Open the file or stored picture of a reference.

    Raises:
        ImageError: it is not there, or lies outside the root.
    """
    store = store_of(root)
    if store is not None:
        return store.open(image.path)
    try:
        return safe_path(image.path, folder_of(root)).open("rb")
    except OSError as error:
        raise ImageError(f"{image.path}: cannot be read ({error.strerror or type(error).__name__})") from None


def slices_of(image: ImageRef, root: Root) -> list[ImageRef] | None:
    """Return the files of a volume that is a folder, in order of their place; None where the picture is one file.

    Raises:
        ImageError: the folder is no volume.
    """
    if store_of(root) is not None:
        return None
    folder = safe_path(image.path, folder_of(root))
    with own_errors(image.path, "the folder"):
        if not is_series(folder):
            return None
        check_file(folder, folder_of(root))
        return [ImageRef(str(PurePath(image.path) / file.name)) for file in read_series(folder).files]


def digest_of(image: ImageRef, root: Root) -> str:
    """Return the SHA-256 of a picture's bytes in hexadecimal digits.

    That of a folder of slices is of their checksums, sorted, each on a line: neither names nor other files count.

    Raises:
        ImageError: they cannot be read.
    """
    slices = slices_of(image, root)
    if slices is not None:
        lines = sorted(f"{digest_of(file, root)}\n" for file in slices)
        return hashlib.sha256("".join(lines).encode()).hexdigest()
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
