"""A patient, a picture or a copy of one on both sides of a split is found, wherever the two sides stand."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medmo_core.data.images.digest import digest_of
from medmo_core.data.picture_cache import PictureCache
from medmo_core.data.records.faults import RecordError
from medmo_core.data.records.sample import ImageRef
from medmo_core.data.sources.file_check import iter_faults
from medmo_core.data.sources.open_source import open_source
from medmo_core.data.sources.splits import check_splits


def write(folder: Path, name: str, *records: dict[str, Any]) -> str:
    path = folder / name
    lines = [{"id": f"{name}{i}", "question": "?", "answer": "yes", "licence": "x", **r} for i, r in enumerate(records)]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures of one number of bytes, a copy of the first, and another."""
    for name, value in (("a", 1), ("b", 2), ("copy", 1)):
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(tmp_path / f"{name}.bmp")
    Image.new("L", (9, 9)).save(tmp_path / "other.png")
    return tmp_path


TRAIN, TEST = {"image": "a.bmp", "split": "train"}, {"split": "test"}
SHARED = [
    ({**TRAIN, "group": "p"}, {**TEST, "image": "other.png", "group": "p"}, "group 'p' is"),
    (TRAIN, {**TEST, "image": "./a.bmp"}, r"'\./a\.bmp' is"),
    ({**TRAIN, "split": None, "group": "p"}, {**TEST, "image": "a.bmp"}, r"'a\.bmp' is"),
    (TRAIN, {**TEST, "image": "copy.bmp"}, r"a copy of 'copy\.bmp' is"),
]


@pytest.mark.parametrize(("train", "test", "what"), SHARED)
def test_what_stands_in_two_splits_is_named(folder: Path, train: Any, test: Any, what: str) -> None:
    between = {"image": "b.bmp", "split": "train"}
    message = rf":3: split: {what} in split 'test' here and in 'train' in line 1; expected one split per patient"
    (fault,) = iter_faults(write(folder, "one.jsonl", train, between, test))
    assert re.search(message, str(fault))
    both = [open_source(write(folder, f"{n}.jsonl", r)) for n, r in (("train", train), ("test", test))]
    with pytest.raises(RecordError, match=rf"test\.jsonl:1: split: {what} in split 'test' here .*train\.jsonl:1;"):
        check_splits(both)
    if "copy" not in what:
        with pytest.raises(RecordError, match=rf"split: {what} in split 'test'"):
            open_source(write(folder, "own.jsonl", train, test))


@pytest.mark.parametrize("image", ["a.bmp", "b.bmp", "other.png"])
def test_other_pictures_and_stated_groups_are_no_fault(folder: Path, image: str) -> None:
    test = {**TEST, "image": image, "group": "q"}
    train = {**TRAIN, "group": "p"} if image == "a.bmp" else TRAIN
    name = write(folder, "one.jsonl", train, TRAIN | {"group": "p"}, test)
    assert list(iter_faults(name)) == []
    index = folder / "index"
    check_splits([open_source(name)], index)
    assert len(list(index.glob("*.splits"))) == 1


def test_a_picture_that_is_not_the_one_its_record_states_is_not_trained_on(folder: Path) -> None:
    good = digest_of(ImageRef("a.bmp"), folder)
    cache = PictureCache(10**6)
    assert cache.load(ImageRef("a.bmp", sha256=good.upper()), folder).shape == (8, 8, 3)
    with pytest.raises(ValueError, match=rf"b\.bmp: its sha256 is \w{{64}}, the record says {good}; restore the file"):
        cache.load(ImageRef("b.bmp", sha256=good), folder)


@pytest.fixture
def scans(tmp_path: Path, write_dicom: Callable[..., Path]) -> Path:
    """Three volumes of three slices each: `ct`, `copy` of it under other names, and `other`."""
    for name, shift in (("ct", 0), ("copy", 0), ("other", 5)):
        (tmp_path / name).mkdir()
        for z in range(3):
            tags: dict[str, Any] = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [1, 1]}
            values = np.full((8, 8), z + shift, np.uint16)
            file = tmp_path / name / f"{z if name == 'ct' else 7 - z}.dcm"
            write_dicom(file, values, ImagePositionPatient=[0, 0, z], **tags)
    return tmp_path


def test_the_checksum_of_a_folder_is_of_its_slices(scans: Path) -> None:
    (scans / "copy" / "LICENSE").write_text("free")
    lines = sorted(hashlib.sha256(file.read_bytes()).hexdigest() + "\n" for file in (scans / "ct").iterdir())
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    found = [digest_of(ImageRef(name), scans) for name in ("ct", "copy/", "other")]
    assert found[:2] == [expected] * 2 != found[1:]
    good, bad = ({"image": {"path": name, "sha256": expected}} for name in ("ct", "other"))
    (fault,) = iter_faults(write(scans, "one.jsonl", good, bad))
    assert re.search(rf":2: images\[0\]\.sha256: other: its sha256 is {found[2]}, the record says", str(fault))
    assert PictureCache(10**6).load(ImageRef("ct", sha256=expected), scans).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("train", "test", "what"),
    [
        ("ct", "ct", "'ct' is"),
        ("ct", "ct/1.dcm", "'ct/1.dcm' is"),
        ("ct/1.dcm", "ct", "'ct/1.dcm' is"),
        ("ct", "copy", "a copy of 'copy/7.dcm' is"),
        ("copy/6.dcm", "ct", "a copy of 'ct/1.dcm' is"),
        ("ct", "other", None),
    ],
)
def test_volumes_in_two_splits_are_found_by_their_slices(scans: Path, train: str, test: str, what: str | None) -> None:
    name = write(scans, "one.jsonl", {**TRAIN, "image": train}, {**TRAIN, "image": train}, {**TEST, "image": test})
    faults = [str(fault) for fault in iter_faults(name)]
    assert [f"split: {what} in split 'test' here and in 'train' in line 1;" in fault for fault in faults] == (
        [] if what is None else [True]
    )
