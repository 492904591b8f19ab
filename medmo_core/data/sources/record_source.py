"""Data files of any kind as a source: read through once to check every record, then one record at a time.

What the first reading learns (where each record stands, its split, the sizes of its images) is a few numbers a record.
So large files need little memory, travel to other processes quickly, and can be opened again without that reading.
"""

from __future__ import annotations

import hashlib
import json
import random
import zipfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...durable import replacing
from ...errors import InputError
from ..images.crop import random_square_crop
from ..images.load import safe_path
from ..images.sizes import shown_size
from ..records.faults import Fault, RecordError
from ..records.read import box_faults
from ..records.sample import SPLITS, ImageRef, Sample
from .splits import SplitCheck

MAX_RECORD_BYTES = 16 * 2**20
"""Largest record as text: its pictures stand elsewhere, and reading JSON takes many times its bytes."""
CROP_TRIALS = 8
INDEX_VERSION = 2
Span = tuple[int, int]
"""Where bytes stand in a file: the first, and how many."""


@dataclass(frozen=True)
class Place:
    """Place of a record.

    Attributes:
        file: number of the file.
        start: first byte of the record; in a table, its row group.
        length: its bytes; in a table, its row in the group.
        number: names it in messages and ids: line, row or place in the archive, from 1.
    """

    file: int
    start: int
    length: int
    number: int


@dataclass(frozen=True)
class FoundRecord:
    """A record as the first reading finds it.

    Attributes:
        place: where it stands.
        sample: what it says, with its root; None when it cannot be read.
        faults: what is wrong with it.
        spans: where its images stand, when they stand in the same file.
        file: the file as messages name it.
    """

    place: Place
    sample: Sample | None
    faults: list[Fault]
    spans: Sequence[Span] = ()
    file: str = ""


class RecordFiles(Protocol):
    """Files of one kind, such as all shards of a data set."""

    @property
    def record_word(self) -> str:
        """Word for one record in messages: line, row, record."""
        ...

    @property
    def record_form(self) -> str:
        """Form in which a file holds its records, for messages about a file that holds none."""
        ...

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files."""
        ...

    @property
    def root(self) -> Path | None:
        """Data root of images that are files of their own."""
        ...

    def scan(self) -> Iterator[FoundRecord]:
        """Read all records in order."""
        ...

    def read(self, place: Place, spans: Sequence[Span]) -> Sample:
        """Read one record again, with its root.

        Raises:
            RecordError: it is not what it was.
        """
        ...


def oversized(length: int) -> Fault:
    """Return the fault of a record with too many bytes of text."""
    limit = f"at most {MAX_RECORD_BYTES // 2**20} MiB of text"
    return Fault("", f"is a record of {length / 2**20:.0f} MiB", limit, "keep pictures in files that the record names")


def checked(files: RecordFiles) -> Iterator[tuple[FoundRecord, Sample]]:
    """Yield all records with the sizes of all images and stop at the first that cannot be used.

    Raises:
        RecordError: naming file, line, field, what was expected and the fix.
    """
    seen: dict[str, tuple[str, int]] = {}
    splits = SplitCheck(files.record_word)
    for found in files.scan():
        sample, faults = found.sample, found.faults
        if sample is not None and not faults:
            sample, faults = _with_sizes(sample)
        if sample is not None:
            place = (found.file, found.place.number)
            faults = [*faults, *repeated(sample, *place, seen, files.record_word), *splits.faults(sample, place)]
        if sample is None or faults:
            raise RecordError([fault.at(found.file, found.place.number) for fault in faults])
        yield found, sample


def repeated(sample: Sample, file: str, number: int, seen: dict[str, tuple[str, int]], word: str) -> list[Fault]:
    """Return the fault of an id that an earlier record has; `seen` remembers which had it first.

    Args:
        sample: the record's sample.
        file: file of the record, as messages name it.
        number: number of the record in it.
        seen: id -> file and number of the first record with it; added to.
        word: word for one record of such files.
    """
    first = seen.setdefault(sample.id, (file, number))
    if first == (file, number):
        return []
    where = f"{word} {first[1]}" if first[0] == file else f"{first[0]}:{first[1]}"
    return [Fault("id", f"{sample.id!r} is also the id of {where}", "an id that no other record has", "number them")]


def _with_sizes(sample: Sample) -> tuple[Sample, list[Fault]]:
    """Return the sample with the sizes of all its images, and the faults that show once they are known."""
    images: list[ImageRef] = []
    for index, image in enumerate(sample.images):
        try:
            if image.size is None:
                width, height = shown_size(image, sample.root)
                image = replace(image, width=width, height=height)
            elif isinstance(sample.root, Path):
                safe_path(image.path, sample.root)
        except (ValueError, OSError, ImportError) as error:  # an ImageError, or what the system says of a path
            return sample, [Fault(f"images[{index}].path", str(error))]
        images.append(image)
    sample = replace(sample, images=tuple(images))
    return sample, box_faults(sample)


@dataclass(frozen=True)
class RecordIndex:
    """Index of n records with m images in all, from the first reading.

    Attributes:
        places: (n, 4) the fields of `Place`.
        splits: (n,) index into `SPLITS`.
        first_image: (n + 1,) number of the first image of each record.
        sizes: (m, 2) width and height as the samples show them.
        spans: (m, 2) bytes of each image, zeros where it is a separate file.
    """

    places: NDArray[np.int64]
    splits: NDArray[np.int8]
    first_image: NDArray[np.int64]
    sizes: NDArray[np.int32]
    spans: NDArray[np.int64]

    @classmethod
    def build(cls, files: RecordFiles) -> RecordIndex:
        """Read all records.

        Raises:
            RecordError: there is none, or one that cannot be used.
        """
        places, splits, first_image, sizes, spans = array("q"), array("b"), array("q", [0]), array("l"), array("q")
        for found, sample in checked(files):
            place, images = found.place, sample.images
            places.extend((place.file, place.start, place.length, place.number))
            splits.append(SPLITS.index(sample.split or "train"))
            first_image.append(first_image[-1] + len(images))
            for image, span in zip(images, found.spans or [(0, 0)] * len(images), strict=True):
                sizes.extend(image.size or (0, 0))
                spans.extend(span)
        if not splits:
            raise RecordError([Fault("", "holds no sample", files.record_form, "", file=str(files.paths[0]))])
        return cls(
            np.array(places, dtype=np.int64).reshape(-1, 4),
            np.array(splits, dtype=np.int8),
            np.array(first_image, dtype=np.int64),
            np.array(sizes, dtype=np.int32).reshape(-1, 2),
            np.array(spans, dtype=np.int64).reshape(-1, 2),
        )

    @classmethod
    def open(cls, files: RecordFiles, folder: Path | None) -> RecordIndex:
        """Return the index kept in `folder`, or read all records and keep it there; None: nothing is kept.

        It is found again by the files' names, sizes and times of change.
        """
        if folder is None:
            return cls.build(files)
        path = folder / f"{_fingerprint(files)}.npz"
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(*(arrays[name] for name in cls.__dataclass_fields__))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass  # absent or damaged: it is made again
        index = cls.build(files)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial, partial.open("wb") as file:  # several processes may build it at once
            np.savez(file, **vars(index))
        return index


def _fingerprint(files: RecordFiles) -> str:
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files.paths]
    described = json.dumps([INDEX_VERSION, type(files).__name__, str(files.root), stats])
    return hashlib.sha256(described.encode()).hexdigest()[:32]


@dataclass
class RecordSource:
    """Samples of data files.

    Args:
        files: data files of one kind.
        split: serve only this split (a record without one belongs to train); None: all.
        crops: show random square crops of samples whose answer is boxes. A crop keeps every box; where eight trials
            find none that does, the whole image is shown. Other answers may depend on what a crop would hide, so
            their samples are never cropped.
        index_folder: where what the first reading learns is kept, for the next time; None: nowhere.

    Raises:
        RecordError: a record that cannot be used.
        ValueError: no record of this split.
    """

    files: RecordFiles
    split: str | None = None
    crops: bool = False
    index_folder: Path | None = None
    index: RecordIndex = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.index = RecordIndex.open(self.files, self.index_folder)
        splits = self.index.splits
        self._rows = np.flatnonzero(splits == SPLITS.index(self.split) if self.split else splits >= 0)
        if not len(self._rows):
            first, found = self.files.paths[0], ", ".join(sorted({SPLITS[code] for code in splits}))
            raise InputError(f"{first}: no record of split {self.split!r}; its records belong to: {found}")

    @property
    def name(self) -> str:
        """Name of the first file."""
        return self.files.paths[0].name

    @property
    def root(self) -> Path | None:
        """Data root of images that are files of their own."""
        return self.files.root

    @property
    def fingerprint(self) -> str:
        """Name of the files as they are, and of the split that is served."""
        return f"{_fingerprint(self.files)}/{self.split}"

    @property
    def samples(self) -> list[Sample]:
        """All samples, read anew."""
        return [self.sample(index) for index in range(len(self))]

    def __len__(self) -> int:
        return len(self._rows)

    def place(self, index: int) -> tuple[str, int]:
        """Return the file of sample `index` and its number there, as messages name them."""
        file, _, _, number = (int(n) for n in self.index.places[int(self._rows[index])])
        return str(self.files.paths[file]), number

    def sample(self, index: int) -> Sample:
        """Return sample `index` as its record says, with the sizes of its images."""
        row = int(self._rows[index])
        first, last = (int(n) for n in self.index.first_image[row : row + 2])
        place = Place(*(int(n) for n in self.index.places[row]))
        sample = self.files.read(place, [(int(a), int(b)) for a, b in self.index.spans[first:last]])
        if len(sample.images) != last - first:
            raise InputError(f"{sample.id}: its record has changed since the run began; start it again")
        sizes = self.index.sizes[first:last].tolist()
        images = [
            image if image.size else replace(image, width=width, height=height)
            for image, (width, height) in zip(sample.images, sizes, strict=True)
        ]
        return replace(sample, images=tuple(images))

    def get(self, index: int, rng: random.Random) -> Sample:
        """Return sample `index`, cropped at random where that is asked for and safe."""
        sample = self.sample(index)
        is_pointing = sample.answer is not None and sample.answer.type == "boxes" and len(sample.images) == 1
        if not (self.crops and is_pointing and sample.messages[-1]["role"] != "assistant"):
            return sample
        for _ in range(CROP_TRIALS):
            cropped = random_square_crop(sample, rng)
            if len(cropped.boxes) == len(sample.boxes):
                return cropped
        return sample
