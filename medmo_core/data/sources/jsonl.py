"""JSONL files: one sample per line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from ..records.faults import Fault, RecordError
from ..records.read import read_sample
from ..records.sample import Sample
from .foreign import refuse_other_kinds
from .record_source import MAX_RECORD_BYTES, FoundRecord, Place, Span, checked, oversized

BUFFER_BYTES = 2**20


@dataclass(frozen=True)
class JsonlFiles:
    """One JSON object per line.

    Attributes:
        path: the file.
        root: folder that image paths are relative to.
    """

    path: Path
    root: Path

    record_word = "line"
    record_form = "one JSON object per line"

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def scan(self) -> Iterator[FoundRecord]:
        """Read all lines that are not blank.

        Raises:
            RecordError: the file is of another kind.
        """
        refuse_other_kinds(self.path, self.record_form)
        for place, sample, faults in _records(self.path):
            rooted = None if sample is None else replace(sample, root=self.root)
            yield FoundRecord(place, rooted, faults, file=str(self.path))

    def read(self, place: Place, spans: Sequence[Span]) -> Sample:
        """Read one line again.

        Raises:
            RecordError: it is not what it was.
        """
        with self.path.open("rb") as file:
            file.seek(place.start)
            sample, faults = _read_line(file.read(place.length), self.path, place.number)
        if sample is None or faults:
            raise RecordError([fault.at(str(self.path), place.number) for fault in faults])
        return replace(sample, root=self.root)


def load_jsonl(path: str | Path, root: str | Path | None = None) -> list[Sample]:
    """Read a data file.

    Sizes that the records do not state are read from the image files. Files whose size is stated are not opened.

    Args:
        path: one JSON object per line.
        root: folder that image paths are relative to; None: the file's own.

    Returns:
        The samples in order, each with its data root.

    Raises:
        RecordError: naming file, line, field, what was expected and the fix.
    """
    path = Path(path)
    files = JsonlFiles(path, path.parent if root is None else Path(root))
    samples = [sample for _, sample in checked(files)]
    if not samples:
        raise RecordError([Fault("", "holds no sample", files.record_form, "", file=str(path))])
    return samples


def _records(path: Path) -> Iterator[tuple[Place, Sample | None, list[Fault]]]:
    """Yield place, sample (as far as it could be read) and faults of every line that is not blank."""
    start, line = 0, 0
    with path.open("rb", buffering=BUFFER_BYTES) as file:
        while raw := file.readline(MAX_RECORD_BYTES + 1):
            line += 1
            if len(raw) > MAX_RECORD_BYTES and not raw.endswith(b"\n"):
                length = len(raw) + _skip_line(file)
                yield Place(0, start, length, line), None, [oversized(length)]
                start += length
                continue
            if raw.strip() and raw.strip() != b"\xef\xbb\xbf":
                yield Place(0, start, len(raw), line), *_read_line(raw, path, line)
            start += len(raw)


def _skip_line(file: BinaryIO) -> int:
    """Read to the end of a line without keeping it, and return its number of bytes."""
    length = 0
    while raw := file.readline(MAX_RECORD_BYTES):
        length += len(raw)
        if raw.endswith(b"\n"):
            break
    return length


def _read_line(raw: bytes, path: Path, line: int) -> tuple[Sample | None, list[Fault]]:
    faults: list[Fault] = []
    values = parse_json(raw, faults)
    return None if faults else read_sample(values, faults, default_id=f"{path.stem}:{line}"), faults


class _RepeatedKey(ValueError):
    """A JSON object has a key twice, of which a reader would silently take the last."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKey(next(key for key in keys if keys.count(key) > 1))
    return values


def parse_json(raw: bytes, faults: list[Fault]) -> Any:
    """Return the JSON value of a record's bytes and note what is wrong with them."""
    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_each_once)
    except _RepeatedKey as error:
        faults.append(Fault(error.key[:60], "is given twice", "each key once", "keep the right one"))
    except UnicodeDecodeError as error:
        faults.append(Fault("", f"is not UTF-8 at byte {error.start}", "UTF-8 text", "save the file as UTF-8"))
    except json.JSONDecodeError as error:
        where = f"character {error.pos + 1}"
        fix = "write one complete JSON object per line, without line breaks inside"
        if raw.strip() in (b"[", b"{"):
            fix = "this looks like one JSON document over many lines: write each record on one line, without [ and ]"
        faults.append(Fault("", f"is not valid JSON ({error.msg} at {where})", "a JSON object", fix))
    except (RecursionError, ValueError):
        faults.append(Fault("", "cannot be read as JSON (nested too deep, or a number too long)", "a JSON object"))
    return None
