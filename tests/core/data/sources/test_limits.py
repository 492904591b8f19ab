"""Data files that would fill the memory are refused or read piece by piece; what is no data file is named."""

import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from medmo_core.data.sources import parquet as parquet_files
from medmo_core.data.sources.file_check import FileCheck, iter_faults
from medmo_core.data.sources.open_source import open_source, record_files

MIB = 2**20
Within = Callable[[int, Callable[[], object]], str]
ASK = {"question": "?", "answer": "yes", "licence": "x"}


def messages(path: Path | str) -> list[str]:
    return [str(fault) for fault in iter_faults(path)]


def test_a_huge_line_is_passed_over_and_named(tmp_path: Path, within: Within) -> None:
    path = tmp_path / "my.jsonl"
    with path.open("wb") as file:
        file.write(json.dumps({**ASK, "id": "a"}).encode() + b"\n")
        file.seek(120 * MIB, 1)  # a hole, which takes no space on the disk
        file.write(b"\n" + json.dumps({**ASK, "id": "b"}).encode())
    said = within(100, lambda: messages(path))
    assert "my.jsonl:2: is a record of 120 MiB; expected at most 16 MiB of text" in said and ":3" not in said
    assert within(100, lambda: open_source(str(path))).startswith("RecordError")


def sparse_tar(path: Path, *members: tuple[str, int | bytes, bytes]) -> str:
    """Write members of a type; one given by its size is a hole in the file."""
    with path.open("wb") as file:
        for name, data, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, data if isinstance(data, int) else len(data)
            file.write(info.tobuf(tarfile.GNU_FORMAT))
            file.write(b"" if isinstance(data, int) else data)
            file.truncate(file.tell() + -(-info.size // 512) * 512 - (0 if isinstance(data, int) else info.size))
            file.seek(0, 2)
        file.write(bytes(1024))
    return str(path)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("a.json", 8 * 1024 * MIB, b"0")], "a.json:1: is a record of 8192 MiB; expected at most 16 MiB of text"),
        (
            [("a.json", json.dumps(ASK | {"image": "a.webp"}).encode(), b"0"), ("a.webp", 8 * 1024 * MIB, b"0")],
            "a.webp: a member of 8192 MiB",
        ),
        ([("././@LongLink", 8 * 1024 * MIB, b"L")], "cannot be read as a tar file (a header of more than 1 MiB)"),
        ([("pax", 8 * 1024 * MIB, b"x")], "cannot be read as a tar file (a header of more than 1 MiB)"),
    ],
)
def test_huge_members_of_a_shard_are_refused(tmp_path: Path, within: Within, members: Any, words: str) -> None:
    name = sparse_tar(tmp_path / "s.tar", *members)
    assert words in within(100, lambda: messages(name))
    assert words in within(100, lambda: open_source(name).sample(0))


def test_a_table_whose_rows_are_one_text_repeated_is_read_piece_by_piece(
    tmp_path: Path, within: Within, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    text = "x" * MIB
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 600, pa.int32()), [text])
    table = pa.table({"question": column, "answer": ["yes"] * 600})
    tables.write_table(table, tmp_path / "my.parquet", compression="zstd")
    assert (tmp_path / "my.parquet").stat().st_size < 100_000
    monkeypatch.setattr(parquet_files, "MAX_GROUP_BYTES", 32 * MIB)
    monkeypatch.setattr(parquet_files, "STEP_BYTES", 8 * MIB)
    said = within(250, lambda: messages(tmp_path / "my.parquet"))
    assert "row group 0 unpacks to more; expected at most 32 MiB to a row group; fix: write about a hundred" in said


PNG = io.BytesIO()
Image.effect_noise((40, 30), 90).save(PNG, "PNG")


def test_what_training_would_skip_is_found(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(PNG.getvalue()[:-400])
    (tmp_path / "my.jsonl").write_text(json.dumps({**ASK, "image": "cut.png"}))
    (message,) = messages(tmp_path / "my.jsonl")
    assert "my.jsonl:1: images[0].path: " in message and "cut.png: the picture is truncated or damaged" in message
    check = FileCheck(record_files(str(tmp_path / "my.jsonl")), headers_only=True)
    assert list(check.faults()) == [] and check.num_records == 1
    Image.new("L", (2010, 10)).save(tmp_path / "long.png")
    (tmp_path / "my.jsonl").write_text(json.dumps({**ASK, "image": "long.png"}))
    (message,) = messages(tmp_path / "my.jsonl")
    assert "long.png: is 2010x10 px; expected at most 200 times longer than wide; fix: crop it" in message
    tables, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    data = PNG.getvalue()
    zeroed = data[:100] + bytes(len(data) - 100)
    row = {**ASK, "images": [{"path": "a.png", "width": 40, "height": 30, "bytes": zeroed}]}
    tables.write_table(pa.Table.from_pylist([row]), tmp_path / "my.parquet")
    (message,) = messages(tmp_path / "my.parquet")
    assert "my.parquet:1: images[0].path: a.png: " in message


GZIP = b"\x1f\x8b\x08" + bytes(20)
COCO = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [], "categories": []}
CHAT = {"messages": [{"role": "user", "content": "<image>Where?"}], "images": ["a.png"]}
LLAVA = {"image": "a.png", "conversations": [{"from": "human", "value": "<image>"}]}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("my.jsonl.gz", GZIP, "is packed by gzip; expected one JSON object per line; fix: unpack it first: gunzip"),
        ("my.tar.gz", GZIP, "is packed by gzip"),
        ("my.tar", GZIP, "is packed by gzip; expected an uncompressed tar"),
        ("a.png", PNG.getvalue(), "is a PNG picture; expected one JSON object per line; fix: write a data file that"),
        ("data", b"PAR1" + bytes(9), "is a Parquet table; expected one JSON object per line; fix: give its name the"),
        ("my.json", json.dumps(COCO).encode(), "is a COCO file; .* fix: medmo convert coco .*my.json -o my.jsonl"),
        ("my.json", json.dumps(COCO, indent=1).encode(), "is a COCO file"),
        ("my.json", json.dumps([LLAVA]).encode(), "is a file of LLaVA conversations; .* medmo convert llava"),
        ("my.jsonl", json.dumps(LLAVA).encode(), "is a file of LLaVA conversations"),
        ("my.json", json.dumps([{**LLAVA, "images": []}], indent=1).encode(), "medmo convert sharegpt"),
        ("my.json", json.dumps([CHAT], indent=1).encode(), "medmo convert sharegpt"),
        ("my.jsonl", json.dumps(CHAT).encode(), "medmo convert sharegpt"),
        ("my.txt", b"\xef\xbb\xbfPath;Question;Answer\r\n", "is a table in text form; .* medmo convert csv"),
        (
            "my.xlsx",
            b"PK\3\4" + bytes(99),
            "is a spreadsheet; .* save it as CSV in UTF-8, then: medmo convert csv .*my.csv",
        ),
        ("my.csv", b"path,question,answer\n", "is a table in text form; .* medmo convert csv .*my.csv -o my.jsonl"),
        ("data.yaml", b"train: x\nnames: [a]\n", "is a YOLO data set; .* medmo convert yolo"),
    ],
)
def test_what_is_no_data_file_is_named_with_what_to_do(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    (message,) = messages(tmp_path / name)
    assert re.search(words, message) and "\n" not in message
    with pytest.raises(ValueError, match=words):
        open_source(str(tmp_path / name))


def test_folders_of_other_formats_and_no_name(tmp_path: Path) -> None:
    (tmp_path / "set" / "labels").mkdir(parents=True)
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "1").write_bytes(bytes(128) + b"DICM")
    for folder, command in (("set", "yolo"), ("study", "dicomdir")):
        with pytest.raises(ValueError, match=rf"medmo convert {command} .*{folder} -o {folder}\.jsonl"):
            open_source(str(tmp_path / folder))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "my.jsonl").touch()
    with pytest.raises(ValueError, match=r"own is a folder without Parquet files; .*; fix: name .*own/my\.jsonl"):
        open_source(str(tmp_path / "own"))
    for name in ("", "  "):
        with pytest.raises(ValueError, match="no data file is named; expected a JSONL file"):
            open_source(name)


def test_records_that_only_resemble_another_format_are_records(tmp_path: Path) -> None:
    record = {**ASK, "question": 'what is {"conversations": [', "provenance": {"file_name": "x", "images": []}}
    (tmp_path / "my.jsonl").write_text(json.dumps(record))
    assert messages(tmp_path / "my.jsonl") == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"question": "half \ud83d"}, "question: holds half a character (a lone surrogate); expected UTF-8 text"),
        ({"provenance": {"a": ["\udc00"]}}, "provenance.a[0]: holds half a character"),
        ({"\udc00": 1}, r"\udc00: holds half a character"),
        ({"provenance": json.loads("[" * 60 + "]" * 60)}, "is nested deeper than 32 levels"),
        ({"bbox": [1, 2, 3, 4]}, "bbox: unknown key; expected one of"),
        ({"image": {"path": "a.png", "id": 3}}, "images[0].id: unknown key"),
        ({"conversations": []}, "fix: medmo convert llava"),
        ({"image": {"path": "a.png", "window": [40, 1e999]}}, "images[0].window: is [40, inf]; expected a preset's"),
        ({"image": {"path": "a.png", "window": [[1, 2], [3, 4]]}}, "images[0].window: is"),
        ({"image": {"path": "a.png", "sha256": "abc"}}, "images[0].sha256: is 'abc'; expected 64 hexadecimal digits"),
        ({"image": {"path": "a.png", "width": 10**400, "height": 1}}, "images[0].width: is 1000"),
        ({"image": {"path": "n" * 300 + ".png"}}, "images[0].path: "),
        ({"image": "a.png", "answer": None, "boxes": [{"label": "x", "xyxy": [0.1, 0.2, 0.5, 0.9]}]}, "fractions"),
        ({"image": "a.png", "answer": None, "boxes": [{"label": "\x1b[2J", "xyxy": [9, 9, 99, 99]}]}, r"(\x1b[2J) is"),
    ],
)
def test_values_that_no_record_may_hold(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    (tmp_path / "a.png").write_bytes(PNG.getvalue())
    record = {k: v for k, v in {**ASK, **changes}.items() if v is not None}
    (tmp_path / "my.jsonl").write_text(json.dumps(record).replace("Infinity", "1e999"))
    found = messages(tmp_path / "my.jsonl")
    assert any(words in message for message in found), found
    assert all("did you mean 'width'" not in message for message in found)
    with pytest.raises(ValueError, match=r"my\.jsonl(:1)?: "):
        open_source(str(tmp_path / "my.jsonl"))


def test_a_box_under_one_written_step_is_a_warning(tmp_path: Path) -> None:
    Image.new("L", (4096, 64)).save(tmp_path / "a.png")
    boxes = [{"label": "speck", "xyxy": [7, 7, 10, 20]}, {"label": "mass", "xyxy": [7, 7, 40, 20]}]
    (tmp_path / "my.jsonl").write_text(json.dumps({"licence": "x", "image": "a.png", "question": "?", "boxes": boxes}))
    (message,) = messages(tmp_path / "my.jsonl")
    assert "boxes[0].xyxy_px: warning: (speck) is narrower or lower than the step that boxes are written in" in message
    assert len(open_source(str(tmp_path / "my.jsonl"))) == 1
