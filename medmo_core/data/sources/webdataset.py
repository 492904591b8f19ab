"""WebDataset shards: local tar files with a record `KEY.json` beside its pictures `KEY.jpg`, read where they stand.

Nothing is unpacked. Names of members are only ever looked up in the archive's own table, so none can lead out of it.
"""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from ..images.load import ImageError
from ..records.faults import Fault, RecordError
from ..records.read import read_sample
from ..records.sample import Sample
from .foreign import refuse_other_kinds
from .jsonl import parse_json
from .record_source import MAX_RECORD_BYTES, FoundRecord, Place, Span, oversized

MAX_HEADER_BYTES = 2**20  # of a member's name and attributes, which the library reads at once
MAX_PICTURE_BYTES = 2**29  # of a picture, which decoders may read at once
FORM = "an uncompressed tar"
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True)
class TarMembers:
    """The pictures of one record as a store.

    Attributes:
        archive: the tar file.
        members: name in the record, first byte and number of bytes of each.
    """

    archive: Path
    members: tuple[tuple[str, int, int], ...]

    def open(self, path: str) -> BinaryIO:
        """Return a picture as a file to read."""
        for name, start, length in self.members:
            if name == path and length > MAX_PICTURE_BYTES:
                raise ImageError(
                    f"{path}: a member of {length / 2**20:.0f} MiB in {self.archive}; a picture in a shard has at most "
                    f"{MAX_PICTURE_BYTES // 2**20} MiB: shrink or tile it"
                )
            if name == path:
                return io.BufferedReader(_Window(self.archive, start, length))
        raise ImageError(f"{path}: no such picture in {self.archive}")


class _Window(io.RawIOBase):
    """Some bytes of a file as a separate file."""

    def __init__(self, path: Path, start: int, length: int) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self._start, self._length, self._position = start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._length - self._position))
        data = os.pread(self._descriptor, wanted, self._start + self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


class _Headers(io.FileIO):
    """A tar file of which headers are read, and nothing that would fill the memory."""

    def read(self, size: int | None = -1) -> bytes:
        """Read bytes of a header.

        Raises:
            TarError: they are too many.
        """
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of more than {MAX_HEADER_BYTES // 2**20} MiB")
        return super().read(size)


@dataclass(frozen=True)
class TarFiles:
    """Shards with a record and its pictures under one key.

    A record has the fields of a JSONL line. Its images are named by members of the same archive, relative to the
    record's folder in it; a record that names none shows the picture with its own key.

    Attributes:
        paths: the shards.
    """

    paths: tuple[Path, ...]
    record_word = "record"
    record_form = "a member KEY.json per sample"

    @property
    def root(self) -> Path | None:
        """None: pictures stand in the shards."""
        return None

    def scan(self) -> Iterator[FoundRecord]:
        """Read the headers and records of all shards."""
        for number, path in enumerate(self.paths):
            members, unusable = _members(path)
            records = [name for name in members if name.endswith(".json")]
            faults = [] if records else [Fault("", "holds no record", "a member KEY.json per sample")]
            faults += [Fault(name, f"is {what}", "a regular file", "write the shard anew") for name, what in unusable]
            if faults:
                yield FoundRecord(Place(number, 0, 0, 0), None, faults, file=str(path))
            with path.open("rb") as file:
                for count, name in enumerate(records, start=1):
                    start, length = members[name]
                    place = Place(number, start, length, count)
                    if length > MAX_RECORD_BYTES:
                        yield FoundRecord(place, None, [oversized(length)], file=f"{path}/{name}")
                        continue
                    file.seek(start)
                    yield self._found(place, file.read(length), name, members)

    def _found(self, place: Place, raw: bytes, name: str, members: dict[str, Span]) -> FoundRecord:
        folder, key = posixpath.split(name.removesuffix(".json"))
        own = [key + suffix for suffix in PICTURE_SUFFIXES if posixpath.join(folder, key + suffix) in members]
        sample, faults = self._parse(raw, place, own)
        spans: list[Span] = []
        for index, image in enumerate(sample.images if sample else ()):
            span = members.get(posixpath.join(folder, image.path))
            if span is None:
                fix = f"with the record's key there is: {', '.join(own) or 'no picture'}"
                faults.append(Fault(f"images[{index}].path", f"{image.path!r} is no member of the shard", "", fix))
            spans.append(span or (0, 0))
        if sample is not None:
            sample = self._rooted(sample, place, spans)
        return FoundRecord(place, sample, faults, spans, file=f"{self.paths[place.file]}/{name}")

    def read(self, place: Place, spans: Sequence[Span]) -> Sample:
        """Read one record again.

        Raises:
            RecordError: it is not what it was.
        """
        path = self.paths[place.file]
        with path.open("rb") as file:
            file.seek(place.start)
            raw = file.read(place.length)
        # Where the picture of a record that names none stands, the span says; its name is needed for messages only.
        sample, faults = self._parse(raw, place, [f"picture {i}" for i in range(len(spans))])
        if sample is None or faults:
            raise RecordError([fault.at(str(path), place.number) for fault in faults])
        return self._rooted(sample, place, spans)

    def _parse(self, raw: bytes, place: Place, own: list[str]) -> tuple[Sample | None, list[Fault]]:
        faults: list[Fault] = []
        values = parse_json(raw, faults)
        if faults:
            return None, faults
        if isinstance(values, dict) and own and not values.get("image") and not values.get("images"):
            values = {**values, "images": own}
        default_id = f"{self.paths[place.file].stem}:{place.number}"
        return read_sample(values, faults, default_id=default_id), faults

    def _rooted(self, sample: Sample, place: Place, spans: Sequence[Span]) -> Sample:
        members = tuple((image.path, *span) for image, span in zip(sample.images, spans, strict=False))
        return replace(sample, root=TarMembers(self.paths[place.file], members))


def _members(path: Path) -> tuple[dict[str, Span], list[tuple[str, str]]]:
    """Return where the bytes of each regular member stand, and the members that cannot be served, with the reason."""
    members: dict[str, Span] = {}
    unusable: list[tuple[str, str]] = []
    refuse_other_kinds(path, FORM)
    try:
        # Uncompressed only: others cannot be read from the middle.
        with _Headers(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                name = posixpath.normpath(member.name)
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    unusable.append((name, "a link, a device or a sparse file"))
                elif name in members:
                    unusable.append((name, "there twice"))
                else:
                    members[name] = (member.offset_data, member.size)
                archive.members = []  # type: ignore[attr-defined]  # the library would keep them all
    except Exception as error:  # the library's own, and what it lets pass of numbers and names that make no sense
        why = str(error) or type(error).__name__
        raise RecordError([Fault("", f"cannot be read as a tar file ({why})", FORM, "", file=str(path))]) from None
    return members, unusable
