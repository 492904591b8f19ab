"""Search for what lies in two splits: a patient, a picture, or a copy of one. It would make results look too good."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..images.digest import digest_of, open_bytes, slices_of
from ..records.faults import Fault, RecordError
from ..records.sample import ImageRef, Sample
from ..records.store import Root, store_of

FoundPlace = tuple[str, int]
"""File and number of a record, as messages name them."""
LOOKS_TOO_GOOD = "pictures of one patient on both sides make results look too good"


class SplitSource(Protocol):
    """Samples of data files that name their places."""

    @property
    def fingerprint(self) -> str:
        """Name of the files as they are, and of the split that is served."""
        ...

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Sample:
        """Return sample `index`."""
        ...

    def place(self, index: int) -> FoundPlace:
        """Return where it stands."""
        ...


@dataclass(frozen=True)
class _Use:
    """One use of a picture."""

    split: str
    place: FoundPlace
    group: str | None


@dataclass
class _Alike:
    """Pictures of one number of bytes, of which checksums are made once they stand in two splits."""

    split: str
    waiting: list[tuple[ImageRef, Root, _Use]] = field(default_factory=list)
    digests: dict[str, _Use] = field(default_factory=dict)


@dataclass
class SplitCheck:
    """Search, record by record, for what stands in two splits.

    A group (patient or volume) is looked for first. Records of which one states no group are compared by their
    pictures: by file, and where `contents` is on by their bytes. A folder of slices is compared slice by slice.

    Attributes:
        word: word for one record in messages.
        contents: whether pictures are compared by their bytes, of which equally long ones are read.
    """

    word: str
    contents: bool = False
    _groups: dict[str, _Use] = field(default_factory=dict)
    _files: dict[tuple[str, str], _Use] = field(default_factory=dict)
    _alike: dict[int, _Alike] = field(default_factory=dict)

    def faults(self, sample: Sample, place: FoundPlace) -> list[Fault]:
        """Return what this record shares with an earlier one of another split."""
        use = _Use(sample.split or "train", place, sample.group)
        if sample.group is not None:
            first = self._groups.setdefault(sample.group, use)
            if first.split != use.split:
                return [self._fault(f"group {sample.group!r} is", use, first)]
        found = (self._of_image(image, sample.root, use) for image in sample.images)
        return next(([fault] for fault in found if fault is not None), [])

    def _of_image(self, image: ImageRef, root: Root, use: _Use) -> Fault | None:
        """Return the fault of a picture that another split has, too; of a folder, of any of its slices."""
        # A stored picture has a name in its own record only.
        key = (str(root), os.path.normpath(image.path))
        first = self._files.setdefault(key, use) if store_of(root) is None else use
        if first is not use:
            return self._fault(f"{image.path!r} is", use, first) if _is_shared(first, use) else None
        try:
            slices = slices_of(image, root)
        except (ValueError, OSError, ImportError):
            return None  # that a picture cannot be read is found, and said, by whoever reads it
        if slices is not None:
            found = (self._of_image(file, root, use) for file in slices)
            return next((fault for fault in found if fault is not None), None)
        copy = self._copy(image, root, use) if self.contents else None
        return None if copy is None else self._fault(f"a copy of {image.path!r} is", use, copy)

    def _copy(self, image: ImageRef, root: Root, use: _Use) -> _Use | None:
        """Return the use, in another split, of a picture with the same bytes; None: there is none."""
        try:
            with open_bytes(image, root) as stream:
                length = stream.seek(0, io.SEEK_END)
            alike = self._alike.setdefault(length, _Alike(use.split))
            alike.waiting.append((image, root, use))
            if alike.split == use.split and not alike.digests:
                return None
            found = None
            for waiting, its_root, its_use in alike.waiting:
                first = alike.digests.setdefault(digest_of(waiting, its_root), its_use)
                found = first if its_use is use and _is_shared(first, use) else found
            alike.waiting.clear()
        except (ValueError, OSError):
            return None
        return found

    def _fault(self, what: str, use: _Use, first: _Use) -> Fault:
        file, number = first.place
        where = f"{self.word} {number}" if file == use.place[0] else f"{file}:{number}"
        return Fault(
            "split",
            f"{what} in split {use.split!r} here and in {first.split!r} in {where}",
            "one split per patient or volume",
            f"move all of its records into one split: {LOOKS_TOO_GOOD}",
        )


def _is_shared(first: _Use, use: _Use) -> bool:
    """Whether one picture in two records shows that a patient is in two splits; stated groups know better."""
    return first.split != use.split and (first.group is None or use.group is None)


def check_splits(sources: Sequence[SplitSource], index_folder: Path | None = None) -> None:
    """Refuse sources of which one is trained on and another held out, where both show a patient or a picture.

    Args:
        sources: all of them.
        index_folder: folder in which a clean outcome is noted, for the next time; None: it is not.

    Raises:
        RecordError: naming the record, and where what it shares stands.
    """
    described = json.dumps(sorted({source.fingerprint for source in sources}))
    note = index_folder and index_folder / f"{hashlib.sha256(described.encode()).hexdigest()[:32]}.splits"
    if note and note.exists():
        return
    check = SplitCheck("record", contents=True)
    for source in sources:
        for index in range(len(source)):
            place = source.place(index)
            faults = check.faults(source.sample(index), place)
            if faults:
                raise RecordError([fault.at(*place) for fault in faults])
    if note:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()
