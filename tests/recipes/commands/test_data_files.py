"""`medmo validate` and `medmo evaluate --data` on JSONL, Parquet and tar files: the same samples, the same faults."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medmo_core.data.records.sample import ImageRef, Sample
from medmo_core.data.sources.webdataset import TarMembers
from medmo_recipes.commands import evaluate as evaluate_module
from medmo_recipes.commands.validate import main as validate
from medmo_recipes.configs import CONFIGS
from medmo_recipes.evaluation.controls import shuffle_images
from medmo_recipes.evaluation.scores import image_key
from medmo_recipes.training.model.kit import load_kit

Line = dict[str, Any]
Write = Callable[[Path, list[Line]], str]


def write_jsonl(folder: Path, lines: list[Line]) -> str:
    (folder / "set.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return str(folder / "set.jsonl")


def write_tar(folder: Path, lines: list[Line]) -> str:
    with tarfile.open(folder / "set-0000.tar", "w") as archive:
        members = {path.name: path.read_bytes() for path in folder.glob("*.png")}
        members |= {f"{number:03d}.json": json.dumps(line).encode() for number, line in enumerate(lines)}
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(folder / "set-{0000..0000}.tar")


def write_parquet(folder: Path, lines: list[Line]) -> str:
    parquet, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    names = ("id", "task", "image", "question", "split", "group", "licence")
    rows = []
    for line in lines:
        answer = line.get("answer")
        answer = {"type": "open", "value": answer} if isinstance(answer, str) else answer
        texts = {name: json.dumps(line[name]) for name in ("boxes", "facts") if name in line}
        rows.append({**{name: line.get(name) for name in names}, "answer": answer, **texts})
    keys = [*names, "answer", "boxes", "facts"]
    table = pa.Table.from_pylist([{key: row.get(key) for key in keys} for row in rows])
    parquet.write_table(table, folder / "set.parquet", row_group_size=3)
    return str(folder / "set.parquet")


WRITERS: dict[str, Write] = {"jsonl": write_jsonl, "tar": write_tar, "parquet": write_parquet}
PLACES = {
    "jsonl": ("set.jsonl:3", "line 1", "line 2"),
    "tar": ("set-0000.tar/002.json:3", "set-0000.tar/000.json:1", "set-0000.tar/001.json:2"),
    "parquet": ("set.parquet:3", "row 1", "row 2"),
}
each_kind = pytest.mark.parametrize("kind", list(WRITERS))


def records(own_data: Path) -> list[Line]:
    return [{**json.loads(line), "licence": "CC0-1.0"} for line in own_data.read_text().splitlines()]


@each_kind
def test_sound_files_are_counted(own_data: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = WRITERS[kind](own_data.parent, records(own_data))
    assert validate([name]) == 0
    assert capsys.readouterr().out == f"{name}: 16 samples, 0 faults, 0 warnings\n"


@each_kind
def test_every_fault_is_named_with_place_field_and_fix(
    own_data: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = records(own_data)[:5]
    lines[2] |= {"id": lines[0]["id"], "image": "missing.png"}  # a name that is taken, a picture that is not there
    lines[3] |= {"group": lines[1]["group"], "split": "train"}  # its patient is in the test split
    del lines[1]["licence"]
    lines[4]["boxes"] = [{"label": "square", "xyxy": [0, 0, 65, 9]}]  # the picture is 64 px wide
    name = WRITERS[kind](own_data.parent, lines)
    assert validate([name]) == 1
    said = capsys.readouterr().out
    third, first, second = PLACES[kind]
    found = f"{name}: 5 samples, "
    assert f"{third}: id: 'q0' is also the id of " in said and first in said
    assert f"{third}: images[0].path: " in said and "missing.png" in said
    assert "split: group 'scan-0' is in split 'train' here and in 'test' in " in said
    assert "boxes[0].xyxy_px: (square) is [0, 0, 65, 9]: outside its image of 64x64 px" in said
    assert "licence: warning: is missing in 1 record(s), the first in " in said and second in said
    assert found in said and ", 1 warnings" in said
    assert validate([name, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["data"], told["samples"], told["faults"], told["warnings"]) == (name, 5, len(told["found"]) - 1, 1)
    (outside,) = [fault for fault in told["found"] if fault["field"] == "boxes[0].xyxy_px"]
    assert outside["line"] == 5 and outside["level"] == "error" and "outside its image" in outside["problem"]


def test_a_table_that_is_none_and_an_archive_without_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing else")
    assert validate([str(tmp_path / "broken.parquet")]) == 1
    assert "broken.parquet: cannot be read as a Parquet table" in capsys.readouterr().out
    empty = write_tar(tmp_path, [])
    assert validate([empty]) == 1
    assert "set-0000.tar: holds no record; expected a member KEY.json per sample" in capsys.readouterr().out


def test_each_kind_of_file_gets_the_same_scores(
    own_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kit = load_kit(CONFIGS["debug_instruct"](), "cpu")
    kit.model.eval()
    monkeypatch.setattr("medmo_core.models.official.folder.find_folder", lambda name: tmp_path)
    monkeypatch.setattr("medmo_core.inference.load", lambda *_, **__: kit)
    scores = {}
    for kind, write in WRITERS.items():
        name = write(own_data.parent, records(own_data))
        words = ["--checkpoint", "x", "--data", name, "--max-new-tokens", "2", "--out", str(tmp_path / kind)]
        assert evaluate_module.main(words) == 0
        assert f"{name}, split test: " in capsys.readouterr().out
        scores[kind] = json.loads((tmp_path / kind / "metrics.json").read_text())["metrics"]
    assert scores["jsonl"]["vqa_accuracy"]["n"] == 2
    assert scores["tar"] == scores["jsonl"] and scores["parquet"] == scores["jsonl"]
    with pytest.raises(ValueError, match=r"nowhere\.tar is no file; expected a JSONL file, Parquet files"):
        evaluate_module.main(["--checkpoint", "x", "--data", "nowhere.tar"])


def test_pictures_of_different_stores_are_different_pictures() -> None:
    """Tables may leave their pictures unnamed: the control and the intervals must still tell them apart."""
    one, other = (
        Sample(name, "vqa", (ImageRef("images[0]"),), root=TarMembers(Path("a.tar"), (("images[0]", start, 9),)))
        for name, start in (("one", 0), ("other", 512))
    )
    assert image_key(one, crop=False) != image_key(other, crop=False)
    shown = shuffle_images([one, other])
    assert [sample.root for sample in shown] == [other.root, one.root]
