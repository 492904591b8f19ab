"""Atomic writing: an older file or folder stays whole until the new one is in its place."""

import errno
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from medmo_core import durable


def failing(*args: object) -> None:
    raise OSError("disk full")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_are_replaced_and_leave_nothing_beside(tmp_path: Path) -> None:
    durable.write_text(tmp_path / "a.txt", "Größe\n")
    durable.write_text(tmp_path / "a.txt", "größer\n")
    assert (tmp_path / "a.txt").read_bytes() == "größer\n".encode()
    durable.write_bytes(tmp_path / "b", b"\r\n")
    assert (tmp_path / "b").read_bytes() == b"\r\n"
    assert names(tmp_path) == ["a.txt", "b"]


def test_json_for_programs_and_for_people(tmp_path: Path) -> None:
    durable.write_json(tmp_path / "a.json", {"ß": [1]})
    durable.write_json(tmp_path / "b.json", {"ß": [1]}, indent=2)
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{"\\u00df": [1]}'
    assert (tmp_path / "b.json").read_text(encoding="utf-8") == '{\n  "ß": [\n    1\n  ]\n}\n'
    assert json.loads((tmp_path / "a.json").read_text()) == json.loads((tmp_path / "b.json").read_text())


@pytest.mark.parametrize("operation", ["flush", "Path.replace"])
def test_a_write_that_fails_leaves_the_older_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    durable.write_text(tmp_path / "a.txt", "old")
    monkeypatch.setattr(f"medmo_core.durable.{operation}", failing)
    with pytest.raises(OSError, match="disk full"):
        durable.write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_an_error_while_a_file_is_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), durable.replacing(tmp_path / "a.txt") as partial:
        partial.write_text("half")
        assert partial.name.startswith(".")
        raise KeyError
    assert names(tmp_path) == []


@pytest.mark.parametrize("writing", [durable.replacing, durable.replacing_folder])
@pytest.mark.parametrize(
    ("kind", "said"),
    [(OSError, (errno.ENOSPC, "No space left on device")), (Exception, ("I/O error: No space left (os error 28)",))],
    ids=["python", "rust"],
)
def test_a_full_disk_names_the_file(
    tmp_path: Path, writing: Callable[[Path], AbstractContextManager[Path]], kind: type[Exception], said: Sequence[Any]
) -> None:
    with pytest.raises(OSError, match="No space") as caught, writing(tmp_path / "a"):
        raise kind(*said)
    assert caught.value.filename == str(tmp_path / "a") and names(tmp_path) == []


def folder_of(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content)
    return path


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_published_over_an_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(durable, "_exchange", lambda a, b: False)
    for content in ("old", "new"):
        durable.publish(folder_of(tmp_path / ".a.partial", content), tmp_path / "a")
        assert (tmp_path / "a/file").read_text() == content
        assert names(tmp_path) == ["a"]


def test_a_folder_that_cannot_be_moved_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path / "a", "old")
    partial = folder_of(tmp_path / ".a.partial", "new")
    rename = Path.rename

    def fails_for_partial(path: Path, target: Path) -> Path:
        if path == partial:
            failing()
        return rename(path, target)

    monkeypatch.setattr(durable, "_exchange", lambda a, b: False)
    monkeypatch.setattr(Path, "rename", fails_for_partial)
    with pytest.raises(OSError, match="disk full"):
        durable.publish(partial, tmp_path / "a")
    assert (tmp_path / "a/file").read_text() == "old"


def test_sweep_removes_what_was_interrupted_and_nothing_else(tmp_path: Path) -> None:
    folder_of(tmp_path / ".a.removed", "")
    durable.aside(tmp_path / "b.json").write_text("half")
    folder_of(tmp_path / "c", "")
    (tmp_path / ".d").write_text("")
    durable.sweep(tmp_path)
    assert names(tmp_path) == [".d", "c"]
    durable.remove(tmp_path / "c")
    assert names(tmp_path) == [".d"]


def test_processes_agree_on_the_name_of_a_folder_they_fill_together(tmp_path: Path) -> None:
    partial = durable.shared_aside(tmp_path / "step-000010")
    assert partial == tmp_path / ".step-000010.partial" and durable.final_of(partial) == tmp_path / "step-000010"
    folder_of(partial, "half")
    durable.sweep(tmp_path)
    assert names(tmp_path) == []


def test_an_error_while_a_folder_is_filled_leaves_the_older_one(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with durable.replacing_folder(tmp_path / "a") as partial:
            (partial / content).write_text(content)
            assert partial.name.startswith(".")
    with pytest.raises(KeyError), durable.replacing_folder(tmp_path / "a") as partial:
        (partial / "half").write_text("half")
        raise KeyError
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["new"]


@pytest.mark.parametrize(("content", "kept"), [(b"", b""), (b"a", b""), (b"a\n", b"a\n"), (b"a\n\nbc", b"a\n\n")])
def test_lines_end_whole(tmp_path: Path, content: bytes, kept: bytes) -> None:
    (tmp_path / "lines").write_bytes(content)
    assert durable.mend_lines(tmp_path / "lines") == len(content) - len(kept)
    assert (tmp_path / "lines").read_bytes() == kept
    assert durable.mend_lines(tmp_path / "nothing") == 0
