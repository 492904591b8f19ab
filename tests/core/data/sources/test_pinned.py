"""What later versions must not change: which sample a draw is, and what names and bytes of data files mean."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from medmo_core.data.records.faults import Fault
from medmo_core.data.records.sample import Sample
from medmo_core.data.sources import jsonl
from medmo_core.data.sources.file_check import iter_faults
from medmo_core.data.sources.jsonl import JsonlFiles, parse_json
from medmo_core.data.sources.mixture import Mixture
from medmo_core.data.sources.open_source import find_files, open_source
from medmo_core.data.sources.splits import check_splits


@dataclass
class Numbers:
    """Source whose samples name themselves and a number drawn for them."""

    name: str
    length: int
    root: Path | None = None

    def __len__(self) -> int:
        return self.length

    def get(self, index: int, rng: random.Random) -> Sample:
        return Sample(f"{self.name}{index}:{rng.randrange(1000)}", "text")


def test_draws_stay_what_they_are() -> None:
    """A run that was begun by an older version goes on with the samples that it would have drawn."""
    mixture = Mixture({"a": (Numbers("a", 3), 1.0), "b": (Numbers("b", 5), 2.0)}, seed=7)
    drawn = [mixture.draw(n).id for n in (0, 1, 2, 3, 4, 5, 6, 7, 63, 64, 65, 66, 1000, 10**6)]
    assert drawn == [
        "b3:102", "b2:283", "b1:710", "a1:671", "b4:427", "b0:677", "b3:369", "a2:151", "b0:31", "b1:612", "b2:467",
        "a0:599", "a2:117", "b0:582",
    ]  # fmt: skip
    assert len(mixture) == 8


def test_a_rare_source_is_in_every_block() -> None:
    mixture = Mixture({"often": (Numbers("o", 5), 999.0), "rare": (Numbers("r", 5), 1.0)}, seed=0)
    rare = [n for n in range(3003) if mixture.draw(n).id.startswith("r")]
    assert len(rare) == 3


@pytest.mark.parametrize(
    ("raw", "value", "problem", "fix"),
    [
        (b'{"a": 1}', {"a": 1}, "", ""),
        (b'\xef\xbb\xbf{"a": 1}\r\n', {"a": 1}, "", ""),
        (b"ab\xff", None, "is not UTF-8 at byte 2", "save the file as UTF-8"),
        (
            b'{"a": }',
            None,
            "is not valid JSON (Expecting value at character 7)",
            "write one complete JSON object per line",
        ),
        (b" [ \n", None, "is not valid JSON", "this looks like one JSON document over many lines"),
        (b"{", None, "is not valid JSON", "this looks like one JSON document over many lines"),
        (b"[[", None, "is not valid JSON", "write one complete JSON object per line"),
        (b"[" * 100_000, None, "nested too deep, or a number too long", ""),
        (b"1" * 5_000, None, "nested too deep, or a number too long", ""),
    ],
)
def test_bytes_of_a_record(raw: bytes, value: Any, problem: str, fix: str) -> None:
    faults: list[Fault] = []
    assert parse_json(raw, faults) == value
    assert len(faults) == bool(problem)
    assert all(problem in fault.problem and fault.fix.startswith(fix) and fault.expected for fault in faults)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a-{08..10}.tar", ["a-08.tar", "a-09.tar", "a-10.tar"]),
        ("{0..1}-{00..01}", ["0-00", "0-01", "1-00", "1-01"]),
        ("a-08.tar", ["a-08.tar"]),
        ("a-*.tar", ["a-08.tar", "a-09.tar", "a-10.tar"]),
        ("a-?8.tar", ["a-08.tar"]),
        ("a-[01]9.tar", ["a-09.tar"]),
        (".", ["x.parquet", "y.parquet"]),
    ],
)
def test_names_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, found: list[str]) -> None:
    for file in ("a-08.tar", "a-09.tar", "a-10.tar", "0-00", "0-01", "1-00", "1-01", "y.parquet", "x.parquet"):
        (tmp_path / file).touch()
    (tmp_path / "a-11.tar").mkdir()
    assert [path.relative_to(tmp_path).as_posix() for path in find_files(f"{tmp_path}/{name}")] == found
    monkeypatch.chdir(tmp_path)
    assert [path.as_posix() for path in find_files(name)] == found


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a-{08..12}.tar", r"a-11\.tar is no file, one of 2 missing of 5"),
        ("a-{9..8}.tar", "means no file: a range begins with its smaller"),
        (" ", "no data file is named"), ("b-*.tar", "is no file; expected"), ("empty", "folder without Parquet files"),
    ],
)  # fmt: skip
def test_names_of_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str) -> None:
    for number in (8, 9, 10):
        (tmp_path / f"a-{number:02}.tar").touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        find_files(name)


def test_lines_behind_a_huge_one_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MAX_RECORD_BYTES", 60)
    good = b'{"question": "a", "answer": "b"}\n'
    path = tmp_path / "my.jsonl"
    path.write_bytes(b"x" * 150 + b"\n" + good + b" \r\n" + b"y" * 61 + b"\n" + good)
    found = list(JsonlFiles(path, tmp_path).scan())
    assert [(r.place.start, r.place.length, r.place.number) for r in found] == [
        (0, 151, 1), (151, len(good), 2), (151 + len(good) + 3, 62, 4), (151 + len(good) + 65, len(good), 5),
    ]  # fmt: skip
    assert [r.sample is None for r in found] == [True, False, True, False]
    for record in (found[1], found[3]):
        assert JsonlFiles(path, tmp_path).read(record.place, ()) == record.sample


@pytest.mark.parametrize("name", ["a.yml", "a.yaml", "A.YML"])
def test_a_table_of_names_is_yolo(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("train: x\nnames: [a]\n")
    with pytest.raises(ValueError, match="is a YOLO data set"):
        list(JsonlFiles(tmp_path / name, tmp_path).scan())


def test_records_without_a_licence_are_counted_once(tmp_path: Path) -> None:
    records = [{"question": "a", "answer": "b", **extra} for extra in ({"licence": "CC0-1.0"}, {}, {"licence": ""}, {})]
    path = tmp_path / "my.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    (warning,) = [fault for fault in iter_faults(path) if fault.level == "warning" and fault.field == "licence"]
    assert warning.problem.startswith("is missing in ") and warning.problem.endswith("the first in line 2")


def test_a_clean_outcome_is_noted_in_a_new_folder_and_asked_for_no_more(tmp_path: Path) -> None:
    path, folder = tmp_path / "my.jsonl", tmp_path / "not" / "there"
    path.write_text(
        "".join(json.dumps({"question": s, "answer": "b", "split": s}) + "\n" for s in ("train", "test")),
        encoding="utf-8",
    )
    sources = [open_source(str(path), split=split) for split in ("train", "test")]
    check_splits(sources)
    assert not folder.exists()
    check_splits(sources, folder)
    (note,) = folder.iterdir()
    assert note.suffix == ".splits" and note.read_bytes() == b""

    def fail(index: int) -> Sample:
        raise AssertionError("read again")

    for source in sources:
        source.sample = fail  # type: ignore[method-assign]
    check_splits(sources, folder)
    with pytest.raises(AssertionError, match="read again"):
        check_splits(sources)


def test_a_file_of_no_records_is_named_with_what_it_should_hold(tmp_path: Path) -> None:
    (tmp_path / "my.jsonl").write_text("\n \n")
    with pytest.raises(ValueError, match=r"my\.jsonl: holds no sample; expected one JSON object per line"):
        open_source(str(tmp_path / "my.jsonl"))


def test_a_key_given_twice_is_one_sentence() -> None:
    faults: list[Fault] = []
    parse_json(b'{"a": 1, "a": 2}', faults)
    assert [str(fault) for fault in faults] == ["a: is given twice; expected each key once; fix: keep the right one"]


def test_a_group_without_rows_is_passed_over(tmp_path: Path) -> None:
    tables, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    full = pa.Table.from_pylist([{"question": "a", "answer": "b"}])
    with tables.ParquetWriter(tmp_path / "my.parquet", full.schema) as writer:
        writer.write_table(full.slice(0, 0))
        writer.write_table(full)
    assert tables.ParquetFile(tmp_path / "my.parquet").num_row_groups == 2
    (sample,) = open_source(str(tmp_path / "my.parquet")).samples
    assert sample.answer is not None and sample.answer.value == "b"
