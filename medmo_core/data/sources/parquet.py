"""Parquet tables: one record per row, images by path or as bytes, read row group by row group.

Write row groups of about a hundred rows where images stand in the table: to read one row, its group is read.
"""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from ...optional import import_optional
from ..images.load import ImageError
from ..records.faults import Fault, RecordError
from ..records.read import read_sample
from ..records.sample import Sample
from .record_source import FoundRecord, Place, Span

JSON_COLUMNS = ("messages", "images", "boxes", "facts", "provenance")  # may be written as JSON text: their parts differ
IMAGE_COLUMNS = ("image", "images")
KEPT_FILES, KEPT_RECORD_GROUPS, KEPT_IMAGE_GROUPS = 32, 8, 2
MAX_GROUP_BYTES = 2**30
"""Largest part of a row group that is read at once (records or pictures), after unpacking."""
STEP_BYTES, STEP_ROWS = 2**28, 256  # that are unpacked, at most, between two looks at how much there is by now
T = TypeVar("T")


@dataclass(frozen=True)
class RowImages:
    """The pictures of one row as a store.

    Attributes:
        files: the table.
        place: the row.
        names: names of the pictures, in order.
    """

    files: ParquetFiles
    place: Place
    names: tuple[str, ...]

    def open(self, path: str) -> BinaryIO:
        """Return a picture as a file to read."""
        where = f"{self.files.paths[self.place.file]}:{self.place.number}"
        if path not in self.names:
            raise ImageError(f"{path}: no such picture in {where}")
        data = self.files.image_bytes(self.place)[self.names.index(path)]
        if data is None:
            raise ImageError(f"{path}: {where} has no bytes of it; fill the bytes, or drop that field and name a file")
        return io.BytesIO(data)


@dataclass(frozen=True)
class ParquetFiles:
    """Tables whose columns are the fields of a JSONL line.

    Lists of parts that differ from one another (messages, boxes) may be JSON text. Where images have a field `bytes`,
    the pictures are taken from there; another field (a path, which may be null) must stand beside it.

    Attributes:
        paths: the tables.
        root: folder that image paths are relative to.
    """

    paths: tuple[Path, ...]
    root: Path
    record_word = "row"
    record_form = "one sample per row"
    _open: _Recent = field(default_factory=lambda: _Recent(KEPT_FILES), compare=False, repr=False)
    _records: _Recent = field(default_factory=lambda: _Recent(KEPT_RECORD_GROUPS), compare=False, repr=False)
    _images: _Recent = field(default_factory=lambda: _Recent(KEPT_IMAGE_GROUPS), compare=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return ParquetFiles, (self.paths, self.root)

    def scan(self) -> Iterator[FoundRecord]:
        """Read the records of all row groups; bytes of images only where their size is not stated."""
        for number, path in enumerate(self.paths):
            if len(self._leaves(number, stored=True)) and not self._described_images(number):
                fault = Fault("images", "hold bytes and nothing else", "a field path beside bytes; it may be null")
                yield FoundRecord(Place(number, 0, 0, 0), None, [fault], file=str(path))
            row = 0
            for group in range(self._table(number).num_row_groups):
                for index in range(self._group(number, group).num_rows):
                    row += 1
                    place = Place(number, group, index, row)
                    sample, faults = self._sample(place)
                    yield FoundRecord(place, sample, faults, file=str(path))

    def read(self, place: Place, spans: Sequence[Span]) -> Sample:
        """Read one record again.

        Raises:
            RecordError: it is not what it was.
        """
        sample, faults = self._sample(place)
        if sample is None or faults:
            raise RecordError([fault.at(str(self.paths[place.file]), place.number) for fault in faults])
        return sample

    def image_bytes(self, place: Place) -> list[bytes | None]:
        """Return the stored bytes of each image of a row.

        Raises:
            RecordError: the row group cannot be read.
        """
        names = self._leaves(place.file, stored=True)
        group = self._images.get((place.file, place.start), lambda: self._read(place.file, place.start, names))
        row = self._row(group, place)
        images = row[IMAGE_COLUMNS[1]] if IMAGE_COLUMNS[1] in row else [row[IMAGE_COLUMNS[0]]]
        return [image["bytes"] if image else None for image in images or []]

    def _sample(self, place: Place) -> tuple[Sample | None, list[Fault]]:
        path, faults = self.paths[place.file], []
        stored = self._leaves(place.file, stored=True)
        try:
            record = _as_json(self._row(self._group(place.file, place.start), place), faults)
        except RecordError as error:
            return None, list(error.faults)
        if stored:
            _name_images(record)
        sample = None if faults else read_sample(record, faults, default_id=f"{path.stem}:{place.number}")
        if sample is None:
            return None, faults
        root = RowImages(self, place, tuple(image.path for image in sample.images)) if stored else self.root
        return replace(sample, root=root), faults

    def _group(self, number: int, group: int) -> Any:
        """Return the columns of a row group that are not pictures."""
        names = self._leaves(number, stored=False)
        return self._records.get((number, group), lambda: self._read(number, group, names))

    def _row(self, group: Any, place: Place) -> dict[str, Any]:
        try:
            return group.slice(place.length, 1).to_pylist()[0]
        except Exception as error:  # a text that is no UTF-8, a time beyond the calendar, ...
            problem = f"cannot be read ({type(error).__name__}: {error})"
            raise RecordError([Fault("", problem, "UTF-8 texts and plain numbers", "write the row anew")]) from None

    def _read(self, number: int, group: int, leaves: Sequence[str]) -> Any:
        """Return columns of a row group, unpacked bit by bit: a few bytes can stand for any number of rows or texts."""
        pyarrow = import_optional("pyarrow", "parquet", f"{self.paths[number]}: reading Parquet")
        table, batches, num_bytes = self._table(number), [], 0
        limit = f"at most {MAX_GROUP_BYTES // 2**20} MiB to a row group"
        try:
            # A value may be stored once and meant by every row: no row is larger than all that is stored. The sizes of
            # single columns are not asked for, which ends the process where the table is damaged.
            stored = max(1, table.metadata.row_group(group).total_byte_size)
            rows = max(1, min(STEP_ROWS, STEP_BYTES // stored))
            for batch in table.iter_batches(rows, row_groups=[group], columns=list(leaves), use_threads=False):
                num_bytes += batch.nbytes
                if num_bytes > MAX_GROUP_BYTES:
                    break
                batches.append(batch)
            else:
                return pyarrow.Table.from_batches(batches, table.schema_arrow if not batches else None)
        except Exception as error:  # arrow's own errors are of many kinds
            raise RecordError([_unreadable(self.paths[number], f"row group {group}: {_first_line(error)}")]) from None
        problem, fix = f"row group {group} unpacks to more", "write about a hundred rows to a group"
        raise RecordError([Fault("", problem, limit, fix, file=str(self.paths[number]))])

    def _leaves(self, number: int, *, stored: bool) -> list[str]:
        """Return the table's columns down to their leaves: the bytes of images, or all others."""
        schema = self._table(number).schema
        paths = [schema.column(i).path for i in range(len(schema))]
        return [p for p in paths if (p.split(".")[0] in IMAGE_COLUMNS and p.endswith(".bytes")) == stored]

    def _described_images(self, number: int) -> bool:
        """Whether images have a field besides their bytes, from which their number can be read without the bytes."""
        return any(path.split(".")[0] in IMAGE_COLUMNS for path in self._leaves(number, stored=False))

    def _table(self, number: int) -> Any:
        parquet = import_optional("pyarrow.parquet", "parquet", f"{self.paths[number]}: reading Parquet")
        try:
            return self._open.get(number, lambda: parquet.ParquetFile(self.paths[number], memory_map=True))
        except Exception as error:  # arrow's own errors are of many kinds
            raise RecordError([_unreadable(self.paths[number], _first_line(error))]) from None


class _Recent:
    """Values that were made last."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.kept: OrderedDict[Any, Any] = OrderedDict()

    def get(self, key: Any, make: Callable[[], T]) -> T:
        if key not in self.kept:
            self.kept[key] = make()
            if len(self.kept) > self.size:
                self.kept.popitem(last=False)
        self.kept.move_to_end(key)
        return self.kept[key]


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _unreadable(path: Path, why: str) -> Fault:
    return Fault("", f"cannot be read as a Parquet table ({why})", "a Parquet table", "", file=str(path))


def _as_json(values: dict[str, Any], faults: list[Fault]) -> dict[str, Any]:
    """Return a row as a record: without the nulls that a table needs, and with JSON texts read."""
    record = _without_nulls(values)
    for name in JSON_COLUMNS:
        if isinstance(record.get(name), str):
            try:
                record[name] = json.loads(record[name])
            except (ValueError, RecursionError) as error:
                faults.append(Fault(name, f"is not valid JSON ({error})", "JSON text, or a column of lists"))
    return record


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _name_images(record: dict[str, Any]) -> None:
    """Give images that stand in the table a name where they have none of their own."""
    if "images" not in record and "image" in record:
        record["images"] = [record.pop("image")]
    images = [image for image in record.get("images") or [] if isinstance(image, dict)]
    paths = [image.get("path") for image in images]
    for index, image in enumerate(images):
        if paths[index] is None or paths.count(paths[index]) > 1:
            image["path"] = f"images[{index}]"
