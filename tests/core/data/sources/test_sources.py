"""JSONL lines, Parquet rows and tar members: the same samples, found one by one, checked before the first is used."""

import io
import json
import pickle
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medmo_core.data.images import sizes
from medmo_core.data.images.load import ImageError, load_image
from medmo_core.data.records.faults import RecordError
from medmo_core.data.records.sample import Sample
from medmo_core.data.sources import record_source
from medmo_core.data.sources.open_source import find_files, open_source

Write = Callable[[Path, list[dict[str, Any]]], str]
COUNT = 7


def picture(index: int) -> bytes:
    pixels = np.full((24 + index, 32, 3), 20 * index, dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def example_records() -> list[dict[str, Any]]:
    """Two images in one, none in another, boxes, turns, and a test split."""
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Compare."}]},
        {"role": "assistant", "content": "They differ."},
    ]
    plain = [{"id": f"q{i}", "image": f"{i}.png", "question": "Dark?", "answer": "yes"} for i in range(4)]
    plain[3]["split"] = "test"
    return [
        *plain,
        {"id": "pair", "task": "dialogue", "images": [{"path": "4.png"}, {"path": "0.png"}], "messages": turns},
        {"id": "text", "question": "CT?", "answer": "scan"},
        {"id": "where", "image": "6.png", "question": "Locate it.", "boxes": [{"label": "it", "xyxy": [2, 2, 9, 9]}]},
    ]


def write_jsonl(folder: Path, lines: list[dict[str, Any]]) -> str:
    for index in range(COUNT):
        (folder / f"{index}.png").write_bytes(picture(index))
    path = folder / "own.jsonl"
    path.write_text("\n\n".join(json.dumps(line) for line in lines) + "\n")
    return str(path)


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def write_tar(folder: Path, lines: list[dict[str, Any]]) -> str:
    """Two shards; pictures lie in the folder of their record, those of several records in both shards."""
    for number, part in enumerate((lines[:3], lines[3:])):
        with tarfile.open(folder / f"own-{number:04d}.tar", "w") as archive:
            for index in range(COUNT):
                add(archive, f"set/{index}.png", picture(index))
            for line in part:
                add(archive, f"set/{line['id']}.json", json.dumps(line).encode())
    return str(folder / "own-{0000..0001}.tar")


def as_rows(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for line in lines:
        images = line.get("images") or ([{"path": line["image"]}] if "image" in line else [])
        rows.append({
            **{k: line.get(k) for k in ("id", "task", "question", "answer", "split", "boxes")},
            "messages": json.dumps(line["messages"]) if "messages" in line else None,  # contents of two types
            "images": images,
        })  # fmt: skip
    return rows


def write_parquet(folder: Path, lines: list[dict[str, Any]]) -> str:
    """Images by path."""
    parquet, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    for index in range(COUNT):
        (folder / f"{index}.png").write_bytes(picture(index))
    parquet.write_table(pa.Table.from_pylist(as_rows(lines)), folder / "own.parquet", row_group_size=2)
    return str(folder / "own.parquet")


def write_parquet_bytes(folder: Path, lines: list[dict[str, Any]]) -> str:
    """Images in the table, in a folder of two tables."""
    parquet, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    rows = as_rows(lines)
    for row in rows:
        row["images"] = [{**i, "bytes": picture(int(i["path"].split(".")[0]))} for i in row["images"]]
    kind = pa.list_(pa.struct([("path", pa.string()), ("bytes", pa.binary())]))
    for number, part in enumerate((rows[:4], rows[4:])):
        table = pa.Table.from_pylist(part)
        table = table.set_column(table.schema.get_field_index("images"), "images", pa.array(
            [row["images"] for row in part], kind
        ))  # fmt: skip
        parquet.write_table(table, folder / f"own-{number}.parquet", row_group_size=2)
    return str(folder)


WRITERS: dict[str, Write] = {
    "jsonl": write_jsonl,
    "tar": write_tar,
    "parquet": write_parquet,
    "parquet-bytes": write_parquet_bytes,
}
each_kind = pytest.mark.parametrize("write", WRITERS.values(), ids=list(WRITERS))


def shown(sample: Sample) -> list[np.ndarray]:
    return [load_image(image.path, root=sample.root).pixels for image in sample.images]


@each_kind
def test_every_kind_of_file_serves_the_same_samples(write: Write, tmp_path: Path) -> None:
    source = open_source(write(tmp_path, example_records()))
    assert len(source) == COUNT
    (tmp_path / "plain").mkdir()
    expected = open_source(write_jsonl(tmp_path / "plain", example_records()))
    for found, wanted in zip(source.samples, expected.samples, strict=True):
        assert found == wanted
        assert all(np.array_equal(a, b) for a, b in zip(shown(found), shown(wanted), strict=True))
    assert [image.size for image in source.sample(4).images] == [(32, 28), (32, 24)]


@each_kind
def test_a_split_is_served_alone(write: Write, tmp_path: Path) -> None:
    name = write(tmp_path, example_records())
    assert [s.id for s in open_source(name, split="test").samples] == ["q3"]
    assert len(open_source(name, split="train")) == COUNT - 1
    with pytest.raises(ValueError, match="no record of split 'val'; its records belong to: test, train"):
        open_source(name, split="val")


@each_kind
def test_a_source_serves_another_process(write: Write, tmp_path: Path) -> None:
    source = open_source(write(tmp_path, example_records()), crops=True)
    source.get(0, random.Random(0))
    other = pickle.loads(pickle.dumps(source))
    for index in range(COUNT):
        mine, theirs = (s.get(index, random.Random(index)) for s in (source, other))
        assert mine == theirs
        assert all(np.array_equal(a, b) for a, b in zip(shown(mine), shown(theirs), strict=True))


@each_kind
def test_crops_of_boxes_show_the_same_pixels(write: Write, tmp_path: Path) -> None:
    source = open_source(write(tmp_path, example_records()), crops=True)
    crops = [source.get(COUNT - 1, random.Random(seed)).images[0].crop for seed in range(10)]
    assert sum(crop is not None for crop in crops) > 5


@each_kind
def test_what_the_first_reading_learned_is_kept(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, folder = write(tmp_path, example_records()), tmp_path / "run" / "index"
    before = {path.name for path in tmp_path.iterdir()}
    first = open_source(name, index_folder=folder)
    assert {path.name for path in tmp_path.iterdir()} - before == {"run"}  # nothing beside the data
    monkeypatch.setattr(type(first.files), "scan", lambda self: pytest.fail("read all records again"))
    monkeypatch.setattr(sizes, "stored_size", lambda *a: pytest.fail("opened images again"))
    again = open_source(name, index_folder=folder)
    assert again.samples == first.samples


def test_a_changed_file_and_a_damaged_index_are_read_anew(tmp_path: Path) -> None:
    name, folder = write_jsonl(tmp_path, example_records()), tmp_path / "index"
    assert len(open_source(name, index_folder=folder)) == COUNT
    next(folder.glob("*.npz")).write_bytes(b"PK\x03\x04 cut short")
    assert len(open_source(name, index_folder=folder)) == COUNT
    write_jsonl(tmp_path, [*example_records(), {"question": "MR?", "answer": "scan"}])
    assert len(open_source(name, index_folder=folder)) == COUNT + 1


@each_kind
def test_a_broken_record_stops_before_training_and_is_named(write: Write, tmp_path: Path) -> None:
    broken = example_records()
    broken[1]["answer"] = None
    with pytest.raises(RecordError, match=r"own.*: answer: nothing to learn"):
        open_source(write(tmp_path, broken))
    twice = example_records()
    twice[5]["id"] = twice[0]["id"]
    with pytest.raises(RecordError, match=r"id: 'q0' is also the id of "):
        open_source(write(tmp_path, twice))


def test_a_line_is_found_again_by_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line is read for one sample, wherever it stands."""
    source = open_source(write_jsonl(tmp_path, example_records()))
    read: list[int] = []
    original = record_source.Place
    whole = type(source.files).read

    def counted(self: Any, place: record_source.Place, spans: Any) -> Sample:
        read.append(place.number)
        return whole(self, place, spans)

    monkeypatch.setattr(type(source.files), "read", counted)
    assert [source.get(i, random.Random(0)).id for i in (6, 0, 3)] == ["where", "q0", "q3"]
    assert read == [13, 1, 7] and original is record_source.Place  # blank lines count, as an editor counts them


def test_a_file_that_changes_under_a_run_is_noticed(tmp_path: Path) -> None:
    name = write_jsonl(tmp_path, example_records())
    source = open_source(name)
    text = Path(name).read_text()
    Path(name).write_text(" " * 9 + "\n" + text)
    with pytest.raises(RecordError, match=r"own\.jsonl:3: is not valid JSON"):
        source.sample(1)


def tar_of(path: Path, *members: tuple[str, bytes]) -> str:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            add(archive, name, data)
    return str(path)


QUESTION = {"question": "Dark?", "answer": "yes"}


def test_a_record_that_names_no_picture_shows_its_own(tmp_path: Path) -> None:
    """And not the one whose key only begins like its own, as DICOM's numbers do."""
    members = [("1.2.json", json.dumps(QUESTION).encode()), ("1.2.png", picture(3)), ("1.2.7.png", picture(5)),
               ("1.2.7.json", json.dumps(QUESTION).encode())]  # fmt: skip
    source = open_source(tar_of(tmp_path / "s.tar", *members))
    assert [[int(pixels[0, 0, 0]) for pixels in shown(s)] for s in source.samples] == [[60], [100]]
    assert [s.id for s in source.samples] == ["s:1", "s:2"]


def test_a_member_named_upwards_stays_in_the_archive(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(picture(1))
    (tmp_path / "in").mkdir()
    record = json.dumps({**QUESTION, "image": "../secret.png"}).encode()
    with pytest.raises(RecordError, match=r"images\[0\]\.path: '\.\./secret\.png' is no member of the shard"):
        open_source(tar_of(tmp_path / "in" / "s.tar", ("a.json", record)))
    name = tar_of(tmp_path / "in" / "t.tar", ("a.json", record), ("../secret.png", picture(4)))
    sample = open_source(name).sample(0)
    assert int(shown(sample)[0][0, 0, 0]) == 80  # the archive's own, not the file
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in", "s.tar", "secret.png", "t.tar"]
    with pytest.raises(ImageError, match="no such picture in"):
        load_image("other.png", root=sample.root)


def test_links_and_repeated_members_are_refused(tmp_path: Path) -> None:
    link = tarfile.TarInfo("a.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        add(archive, "a.json", json.dumps(QUESTION).encode())
        archive.addfile(link)
    with pytest.raises(RecordError, match=r"s\.tar: a\.png: is a link, a device or a sparse file"):
        open_source(str(tmp_path / "s.tar"))
    twice = tar_of(tmp_path / "t.tar", ("a.json", b"{}"), ("./a.json", b"{}"))
    with pytest.raises(RecordError, match=r"t\.tar: a\.json: is there twice"):
        open_source(twice)


def test_what_is_no_tar_is_named(tmp_path: Path) -> None:
    whole = tar_of(tmp_path / "s.tar", ("a.json", json.dumps(QUESTION).encode()), ("a.png", picture(0)))
    cut = tmp_path / "cut.tar"
    cut.write_bytes(Path(whole).read_bytes()[:1600])
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as archive:
        add(archive, "a.json", b"{}")
    for name, what in (("cut.tar", r"cannot be read as a tar file \(.*\)"), ("packed.tar", "is packed by gzip")):
        with pytest.raises(RecordError, match=rf"{name}: {what}; expected an uncompressed tar"):
            open_source(str(tmp_path / name))
    with pytest.raises(RecordError, match="holds no record; expected a member KEY.json per sample"):
        open_source(tar_of(tmp_path / "none.tar", ("a.png", picture(0))))
    with pytest.raises(RecordError, match=r"bad\.tar/a\.json:1: is not valid JSON"):
        open_source(tar_of(tmp_path / "bad.tar", ("a.json", b"{")))


def test_a_row_is_read_with_its_group_alone_and_pixels_only_when_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    source = pickle.loads(pickle.dumps(open_source(write_parquet_bytes(tmp_path, example_records()))))
    read: list[tuple[int, bool]] = []
    original = parquet.ParquetFile.iter_batches

    def counted(self: Any, rows: int, row_groups: list[int], columns: list[str], **options: Any) -> Any:
        read.extend((group, any(column.endswith(".bytes") for column in columns)) for group in row_groups)
        return original(self, rows, row_groups=row_groups, columns=columns, **options)

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", counted)
    sample = source.sample(3)
    assert read == [(1, False)]
    shown(sample)
    assert read == [(1, False), (1, True)]
    source.sample(2)  # its neighbour in the group
    assert len(read) == 2


def test_tables_without_what_is_needed_are_named(tmp_path: Path) -> None:
    parquet, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")

    def table(name: str, images: Any, kind: Any) -> str:
        columns = {"question": ["?"], "answer": ["yes"], "images": pa.array([images], kind)}
        parquet.write_table(pa.table(columns), tmp_path / name)
        return str(tmp_path / name)

    full = pa.list_(pa.struct([("path", pa.string()), ("bytes", pa.binary())]))
    bare = pa.list_(pa.struct([("bytes", pa.binary())]))
    with pytest.raises(RecordError, match="images: hold bytes and nothing else; expected a field path beside bytes"):
        open_source(table("a.parquet", [{"bytes": picture(0)}], bare))
    unnamed = open_source(table("b.parquet", [{"path": None, "bytes": picture(2)}] * 2, full)).sample(0)
    assert [image.path for image in unnamed.images] == ["images[0]", "images[1]"]
    assert [int(pixels[0, 0, 0]) for pixels in shown(unnamed)] == [40, 40]
    with pytest.raises(RecordError, match=r"images\[0\]\.path: x\.png: .*c\.parquet:1 has no bytes of it"):
        open_source(table("c.parquet", [{"path": "x.png", "bytes": None}], full))
    (tmp_path / "d.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(RecordError, match=r"d\.parquet: cannot be read as a Parquet table"):
        open_source(str(tmp_path / "d.parquet"))
    bad = pa.table({"question": [None], "messages": ["{"], "answer": ["yes"]})
    parquet.write_table(bad, tmp_path / "e.parquet")
    with pytest.raises(RecordError, match=r"e\.parquet:1: messages: is not valid JSON"):
        open_source(str(tmp_path / "e.parquet"))


def test_names_mean_files(tmp_path: Path) -> None:
    for name in ("s-08.tar", "s-09.tar", "s-10.tar", "b.parquet", "a.parquet", "c.jsonl"):
        (tmp_path / name).touch()

    def names(name: str) -> list[str]:
        return [path.name for path in find_files(str(tmp_path / name))]

    assert names("s-{08..10}.tar") == ["s-08.tar", "s-09.tar", "s-10.tar"]
    assert names("s-*.tar") == names("s-??.tar") == names("s-{08..10}.tar")
    assert names(".") == names("*.parquet") == ["a.parquet", "b.parquet"]
    assert names("c.jsonl") == ["c.jsonl"]
    for name, message in (
        ("s-{08..12}.tar", r"s-11\.tar is no file, one of 2 missing of 5 in"),
        ("nothing.jsonl", r"nothing\.jsonl is no file; expected a JSONL file, Parquet files"),
        ("no-*.tar", "is no file; expected"),
    ):
        with pytest.raises(ValueError, match=message):
            names(name)
    with pytest.raises(ValueError, match=r"means files of several kinds \(\.jsonl, \.parquet, \.tar\)"):
        open_source(str(tmp_path / "*"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is a folder without Parquet files"):
        open_source(str(tmp_path / "empty"))
