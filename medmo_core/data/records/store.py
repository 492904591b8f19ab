"""Images that are no files of their own: members of an archive, or bytes in a table."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Protocol


class ImageStore(Protocol):
    """Container of images in place of a data root: `ImageRef.path` is then a name in the store, never one on disk.

    Stores are compared and hashed: equal ones hold equal images under equal names.
    """

    def open(self, path: str) -> BinaryIO:
        """Return a stored image as a file to read; it can be sought.

        Raises:
            ImageError: the store has no image of that name.
        """
        ...


Root = str | Path | ImageStore | None
"""Where image paths lead: into a folder, into a store, or (None) anywhere."""


def folder_of(root: Root) -> str | Path | None:
    """Return the folder, or None for a store and for no root."""
    return root if isinstance(root, str | Path) else None


def store_of(root: Root) -> ImageStore | None:
    """Return the store, or None for a folder: names in different stores mean different images, paths do not."""
    return None if root is None or isinstance(root, str | Path) else root
