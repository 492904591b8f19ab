"""Damaged data files of every kind end in records or in faults that name their place, never in a library's error."""

import io
import json
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from medmo_core.data.records.faults import RecordError
from medmo_core.data.sources.file_check import iter_faults
from medmo_core.data.sources.open_source import open_source

Damaged = Callable[[bytes, random.Random], bytes]
ODD: list[Any] = [
    None, True, -1, 0, 2.5, 10**30, 1e308, float("nan"), float("inf"), "", "\ud800", "\0", "../..", "x" * 5000, "é",
    [], {}, [[]], {"a": {}}, [None], ["a.png"] * 3, [0.1, 0.2, 0.3, 0.4], [4, 3, 2, 1], [1e30] * 4, {"path": "a.png"},
]  # fmt: skip
PICTURE = io.BytesIO()
Image.new("RGB", (16, 12)).save(PICTURE, "PNG")
TURNS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "boxes", "boxes": [0]}, {"type": "text", "text": "?"}]},
    {"role": "assistant", "content": "Röntgen"},
]
RECORDS: list[dict[str, Any]] = [
    {"id": "a", "image": "a.png", "question": "?", "choices": ["x", "y"], "answer": "x", "split": "val", "group": "g"},
    {"id": "b", "images": [{"path": "a.png", "width": 16, "height": 12, "crop": None, "window": None, "sha256": None}],
     "task": "dialogue", "messages": TURNS, "boxes": [{"label": "x", "xyxy_px": [1, 1, 5, 5], "image": 0}]},
    {"id": "c", "image": {"path": "a.png", "crop": [0, 0, 8, 8]}, "question": "?", "boxes": [{"label": "x",
     "xyxy": [1, 1, 5, 5]}], "facts": [{"finding": "x", "size_mm": 3}], "provenance": {"from": ["x"]}, "licence": "x"},
]  # fmt: skip


def spoilt(value: Any, rng: random.Random) -> Any:
    """Return JSON values in which one, at any depth, is an odd one, missing or under another name."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.2:
        return rng.choice(ODD)
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    key = rng.choice(list(copy) if isinstance(copy, dict) else range(len(copy)))
    if isinstance(copy, dict) and rng.random() < 0.15:
        copy[rng.choice(["bbox", "\x1b[2J", "imges", ""])] = copy.pop(key)
    else:
        copy[key] = spoilt(copy[key], rng)
    return copy


def jsonl(folder: Path) -> bytes:
    return b"\n".join(json.dumps(record).encode() for record in RECORDS)


def tar(folder: Path) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in [("a.png", PICTURE.getvalue()), *((f"é{i}.json", json.dumps(r).encode())
                                                            for i, r in enumerate(RECORDS))]:  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def parquet(folder: Path) -> bytes:
    tables, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    rows = [{"id": str(i), "question": "?", "answer": "é", "messages": None, "images": [
        {"path": "a.png", "bytes": PICTURE.getvalue()}], "boxes": json.dumps([])} for i in range(4)]  # fmt: skip
    out = io.BytesIO()
    tables.write_table(pa.Table.from_pylist(rows), out, row_group_size=2, compression="gzip")
    return out.getvalue()


SEEDS = {"jsonl": jsonl, "tar": tar, "parquet": parquet}


def outcomes(file: Path, cases: Iterator[bytes]) -> set[bool]:
    """Read every case by validate and by training; returns whether there were faults, of all of them."""
    seen = set()
    for number, data in enumerate(cases):
        file.write_bytes(data)
        try:
            faults = [fault for fault in iter_faults(file) if fault.level == "error"]
            for fault in faults:
                assert str(fault).startswith(str(file)) and str(fault).isprintable()
            try:
                source = open_source(str(file))
                assert [source.sample(i).id for i in range(len(source))]
                is_refused = False
            except RecordError as error:
                assert str(error).startswith(str(file))
                is_refused = True
            assert not is_refused or faults, "training refuses what validate passes"
        except Exception as error:
            error.add_note(f"case {number}: {data[:700]!r}")
            raise
        seen.add(bool(faults))
    return seen


def of_bytes(kind: str, folder: Path, damaged: Damaged, count: int, seed: int) -> set[bool]:
    (folder / "a.png").write_bytes(PICTURE.getvalue())
    rng, whole = random.Random(seed), SEEDS[kind](folder)
    return outcomes(folder / f"case.{kind}", (damaged(whole, rng) for _ in range(count)))


def of_values(folder: Path, count: int, seed: int) -> set[bool]:
    (folder / "a.png").write_bytes(PICTURE.getvalue())
    rng = random.Random(seed)
    cases = (json.dumps(spoilt(rng.choice(RECORDS), rng)).encode() for _ in range(count))
    return outcomes(folder / "case.jsonl", cases)


@pytest.mark.parametrize("kind", list(SEEDS))
def test_damaged_files_end_in_faults(tmp_path: Path, damaged: Damaged, kind: str) -> None:
    assert of_bytes(kind, tmp_path, damaged, 500, 1) == {True, False}


def test_odd_values_end_in_faults(tmp_path: Path) -> None:
    assert of_values(tmp_path, 500, 1) == {True, False}


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(2, 8))
@pytest.mark.parametrize("kind", [*SEEDS, "values"])
def test_many_damaged_files_end_in_faults(tmp_path: Path, damaged: Damaged, kind: str, seed: int) -> None:
    if kind == "values":
        of_values(tmp_path, 5000, seed)
    else:
        of_bytes(kind, tmp_path, damaged, 5000, seed)
