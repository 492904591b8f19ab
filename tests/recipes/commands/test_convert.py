"""`medmo convert` counts, names what it leaves out without moving the terminal, and says what comes next."""

import json
from pathlib import Path

import pytest
from PIL import Image

from medmo_recipes.cli import main


def test_convert_then_validate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("L", (40, 30)).save(tmp_path / "pictures" / "a.png")
    talk = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "Yes."}]
    rows = [{"image": "a.png", "conversations": talk}, {"id": "\x1b[2J", "image": "no.png", "conversations": talk}]
    source, out = tmp_path / "talk.json", tmp_path / "out" / "my.jsonl"
    source.write_text(json.dumps(rows))
    words = ["convert", "llava", str(source), "-o", str(out), "--images", str(tmp_path / "pictures")]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "2 rows read, 1 records written with 0 boxes; left out: 1 rows, 0 boxes or other parts" in said.out
    assert f"next: medmo validate {out} --root {tmp_path / 'pictures'}" in said.out
    assert "over an earlier" not in said.out
    assert r"left out: talk:\x1b[2J: " in said.err and "no such file" in said.err and "\x1b" not in said.err
    assert main(["validate", str(out), "--root", str(tmp_path / "pictures")]) == 0
    assert "1 samples, 0 faults, 1 warnings" in capsys.readouterr().out
    assert main(words) == 0 and f"wrote over an earlier {out}" in capsys.readouterr().out
    assert main(["validate", str(source)]) == 1
    said = capsys.readouterr()
    assert "talk.json: is a file of LLaVA conversations; expected one JSON object per line; fix: " in said.out
    assert f"fix: medmo convert llava {source} -o talk.jsonl" in said.out


def test_faults_of_arguments_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["validate", ""], "medmo validate: no data file is named; expected a JSONL file"),
        (["convert", "coco", str(tmp_path / "no.json"), "-o", str(tmp_path / "my.jsonl")], "no such file or folder"),
        (["convert", "coco", str(tmp_path / "no.json"), "-o", str(tmp_path / "a.png")], "expected the name of a JSONL"),
        (["convert", "coco", str(tmp_path), "-o", str(tmp_path / "my.jsonl")], "is a folder; name the file"),
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert message in said and len(said.splitlines()) == 1
