"""The page on several images: its record loads, its texts are those written, its code prints what it says."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from medmo_core.boxes import GRAMMARS, AnyBoxes
from medmo_core.data.sources.file_check import iter_faults
from medmo_core.data.sources.jsonl import load_jsonl
from medmo_core.profile import PROFILES

PAGE = (Path(__file__).parents[3] / "docs" / "multi_image.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    """The fenced block after a comment."""
    found = re.search(rf"<!-- {re.escape(name)} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    assert found, name
    return found.group(1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    record = json.loads(block("record"))
    for image in record["images"]:
        Image.new("RGB", (image["width"], image["height"])).save(tmp_path / image["path"])
    (tmp_path / "studies.jsonl").write_text(json.dumps(record), encoding="utf-8")
    return tmp_path


def truth_of(folder: Path) -> AnyBoxes:
    (sample,) = load_jsonl(folder / "studies.jsonl")
    truth = sample.truth_boxes()
    assert truth is not None
    return truth


def test_the_record_has_no_fault(folder: Path) -> None:
    assert list(iter_faults(folder / "studies.jsonl")) == []


@pytest.mark.parametrize("profile", ["qwen3_vl", "medmo"])
def test_answers_are_written_as_shown(folder: Path, profile: str) -> None:
    assert PROFILES[profile].write_boxes(truth_of(folder)) == block(f"said: {profile}").strip()


def test_the_code_prints_what_its_comments_say(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(folder)
    code = block("python")
    exec(compile(code, "multi_image.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    said = [line.rpartition("# ")[2] for line in code.splitlines() if line.startswith("print(") and "# " in line]
    assert said == ["[0, 2]", "True (1, 1)", "True", "[1.0, 0.0]"] == printed


def test_the_short_form_reads_as_said(folder: Path) -> None:
    short = re.search(r"The short form does it too: `(.*?)`\.", PAGE, re.DOTALL)
    assert short
    (folder / "studies.jsonl").write_text(" ".join(short.group(1).split()), encoding="utf-8")
    assert getattr(truth_of(folder), "images") == (1,)  # noqa: B009


def test_the_table_of_grammars_is_complete() -> None:
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
    places = {"in": "key", "before": "label", "nowhere:": None}
    told = {name.strip("` "): places[where.split()[0]] for names, where in rows for name in names.split(",")}
    assert told == {name: grammar.image_place for name, grammar in GRAMMARS.items()}
