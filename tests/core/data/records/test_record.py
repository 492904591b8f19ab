"""Records: short forms read as meant, and every fault is named with file, line, field, expectation and fix."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medmo_core.data.records.faults import RecordError
from medmo_core.data.records.read import sample_from_json
from medmo_core.data.records.sample import Answer, BoxAnnotation, Fact, ImageRef, Sample
from medmo_core.data.sources.file_check import iter_faults
from medmo_core.data.sources.jsonl import load_jsonl

ASK = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is the liver visible?"}]}]
FULL: dict[str, Any] = {
    "id": "ct-7/vqa",
    "task": "vqa",
    "images": [{"path": "a.png", "width": 40, "height": 30, "modality": "CT", "spacing_mm": [0.7, 0.7]}],
    "messages": ASK,
    "boxes": [{"label": "liver", "xyxy_px": [1, 2, 30, 20], "source": "silver", "code": "10200004"}],
    "answer": {"type": "yesno", "value": "yes"},
    "facts": [{"finding": "liver", "status": "present", "side": "right", "size_mm": 12.5}],
    "split": "train",
    "group": "ct-7",
    "licence": "CC0-1.0",
    "provenance": {"package": "made up"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data root with one picture, 40 x 30 px, and a secret outside it."""
    root = tmp_path / "root"
    root.mkdir()
    Image.new("RGB", (40, 30)).save(root / "a.png")
    Image.new("RGB", (40, 30)).save(tmp_path / "secret.png")
    return root


def write(folder: Path, *records: Any) -> Path:
    """Write records, or raw lines, as a data file."""
    path = folder / "my.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records), encoding="utf-8")
    return path


def changed(**fields: Any) -> dict[str, Any]:
    return {k: v for k, v in {**FULL, **fields}.items() if v is not ...}


def test_full_record_reads_and_writes_back(folder: Path) -> None:
    sample = sample_from_json(FULL)
    assert sample.images == (ImageRef("a.png", 40, 30, modality="CT", spacing_mm=(0.7, 0.7)),)
    assert sample.boxes == (BoxAnnotation("liver", (1.0, 2.0, 30.0, 20.0), source="silver", code="10200004"),)
    assert sample.answer == Answer("yesno", "yes")
    assert sample.facts == (Fact("liver", "present", side="right", size_mm=12.5),)
    assert sample_from_json(json.loads(json.dumps(sample.to_json()))) == sample
    truth = sample.truth_boxes()
    assert truth is not None
    assert (truth.size, truth.labels, truth.xyxy.tolist()) == ((40, 30), ("liver",), [[1, 2, 30, 20]])


def test_the_short_form_needs_three_fields(folder: Path) -> None:
    """Sizes come from the file, the id from the line."""
    path = write(folder, {"image": "a.png", "question": "Is the liver visible?", "answer": "Yes"})
    (sample,) = load_jsonl(path)
    assert sample == Sample("my:1", "vqa", (ImageRef("a.png", 40, 30),), tuple(ASK), answer=Answer("yesno", "Yes"))
    assert sample.root == folder
    assert [fault.level for fault in iter_faults(path)] == ["warning"]


@pytest.mark.parametrize(
    ("record", "task", "answer"),
    [
        (
            {"image": "a.png", "question": "?", "boxes": [{"label": "liver", "xyxy": [0, 0, 40, 30]}]},
            "grounding",
            "boxes",
        ),
        ({"image": "a.png", "question": "?", "boxes": []}, "grounding", "boxes"),
        ({"image": "a.png", "question": "?", "answer": True}, "vqa", "yesno"),
        ({"image": "a.png", "question": "?", "answer": "no."}, "vqa", "yesno"),
        ({"image": "a.png", "question": "?", "answer": "not seen"}, "vqa", "open"),
        ({"images": ["a.png", "a.png"], "question": "?", "answer": "CT", "choices": ["CT", "MR"]}, "vqa", "choice"),
        ({"image": "a.png", "question": "?", "answer": {"type": "report", "value": "Clear."}}, "report", "report"),
        ({"question": "What is CT?", "answer": "An image.", "system": "Be brief."}, "text", "open"),
        ({"image": {"path": "a.png", "crop": [5, 5, 25, 20]}, "question": "?", "answer": "CT"}, "vqa", "open"),
    ],
)
def test_short_forms_are_understood(folder: Path, record: dict[str, Any], task: str, answer: str) -> None:
    (sample,) = load_jsonl(write(folder, record))
    assert (sample.task, sample.answer and sample.answer.type) == (task, answer)
    assert sample.messages[-1]["role"] == "user"
    assert (sample.messages[0]["role"] == "system") == ("system" in record)


def test_sizes_are_those_after_orientation_and_crop(folder: Path) -> None:
    image = Image.new("RGB", (40, 30))
    exif = image.getexif()
    exif[274] = 6  # rotated by a quarter turn
    image.save(folder / "turned.jpg", exif=exif)
    ask = {"question": "?", "answer": "CT"}
    turned, cut = load_jsonl(
        write(folder, {"image": "turned.jpg", **ask}, {"image": {"path": "a.png", "crop": [-5, 0, 15, 30]}, **ask})
    )
    assert (turned.image_size(), cut.image_size()) == ((30, 40), (20, 30))


# record (or raw line), field named, words of the problem, words of the fix
FAULTS: list[tuple[Any, str, str, str]] = [
    ('{"id": "x", ', "", "is not valid JSON", "one complete JSON object per line"),
    ("[", "", "is not valid JSON", "without [ and ]"),
    ("[1, 2]", "", "the line is [1, 2]", "write one {...} per line"),
    ("[" * 100_000, "", "nested too deep", ""),
    (changed(taks="vqa"), "taks", "unknown key", "did you mean 'task'?"),
    (changed(task="vqaa"), "task", "is 'vqaa'", "did you mean 'vqa'?"),
    (changed(id=7), "id", "is 7; expected a text", ""),
    (changed(images=[{"pth": "a.png"}]), "images[0].pth", "unknown key", "did you mean 'path'?"),
    (changed(images=[{"width": 40, "height": 30}]), "images[0].path", "is missing", "add it"),
    (changed(images="a.png"), "images", "is 'a.png'; expected a list", ""),
    (changed(images=[{"path": "../secret.png"}]), "images[0].path", "leaves the data root", "without '..'"),
    (changed(images=[{"path": "/etc/passwd"}]), "images[0].path", "leaves the data root", ""),
    (changed(images=[{"path": "b.png"}]), "images[0].path", "b.png: no such file", ""),
    (changed(images=[{"path": "a.png", "width": 0}]), "images[0].width", "is 0; expected a whole number from 1", ""),
    (changed(images=[{"path": "a.png", "crop": [9, 0, 3, 3]}]), "images[0].crop", "is [9, 0, 3, 3]", "reorder"),
    (
        changed(images=[{"path": "a.png", "crop": [0, 0, 9, 9], "width": 40, "height": 30}]),
        "images[0].width",
        "40x30 contradicts the crop; expected 9x9",
        "after the crop",
    ),
    (changed(images=[{"path": "a.png"}] * 2), "messages", "2 image(s) but 1 image placeholder(s)", '{"type": "image"}'),
    (changed(images=...), "messages", "0 image(s) but 1 image placeholder(s)", '{"type": "image"}'),
    (changed(messages=...), "messages", "1 image(s) but 0 image placeholder(s)", ""),
    (changed(messages=[{"role": "usr", "content": "x"}]), "messages[0].role", "is 'usr'", "did you mean 'user'?"),
    (
        changed(messages=[*ASK, {"role": "system", "content": "x"}]),
        "messages[1].role",
        "in the middle",
        "first message",
    ),
    (changed(messages=[{"role": "user", "content": 3}]), "messages[0].content", "is 3; expected a text or a list", ""),
    (
        changed(messages=[{"role": "user", "content": [{"type": "txt"}]}]),
        "messages[0].content[0].type",
        "is 'txt'",
        "'text'",
    ),
    (
        changed(messages=[{"role": "user", "content": [{"type": "text"}]}]),
        "messages[0].content[0].text",
        "is missing",
        "",
    ),
    (changed(answer=...), "answer", "nothing to learn", "add one of the two"),
    (changed(answer={"type": "yesno", "value": "maybe"}), "answer.value", "is 'maybe'; expected yes or no", "'open'"),
    (
        changed(answer={"type": "choice", "value": "C", "choices": ["CT", "MR"]}),
        "answer.value",
        "is 'C'",
        "add it to choices",
    ),
    (changed(answer={"type": "open"}), "answer.value", "is missing", "add it"),
    (
        changed(boxes=[{"label": "liver", "xyxy_px": [30, 2, 1, 20]}]),
        "boxes[0].xyxy_px",
        "reversed",
        "write [1, 2, 30, 20]",
    ),
    (
        changed(boxes=[{"label": "liver", "xyxy_px": [1, 2, 41, 20]}]),
        "boxes[0].xyxy_px",
        "outside its image of 40x30",
        "clip",
    ),
    (changed(boxes=[{"label": "liver", "xyxy_px": [1, 2, 3]}]), "boxes[0].xyxy_px", "expected a list of 4 numbers", ""),
    (
        '{"image": "a.png", "question": "?", "boxes": [{"label": "x", "xyxy": [0, 0, NaN, 9]}]}',
        "boxes[0].xyxy_px",
        "nan",
        "",
    ),
    (changed(boxes=[{"xyxy_px": [1, 2, 3, 4]}]), "boxes[0].label", "is missing", "add it"),
    (changed(boxes=[{"label": "x", "xyxy_px": [1, 2, 3, 4], "image": 1}]), "boxes[0].image", "is 1", "count from 0"),
    (
        changed(facts=[{"finding": "x", "status": "there"}]),
        "facts[0].status",
        "is 'there'; expected one of present",
        "",
    ),
    ('{"image": "a.png", "question": "?", "answer": "no", "answer": "yes"}', "answer", "is given twice", "right one"),
    (changed(images=[{"path": "a.png", "width": 40}], boxes=[]), "images[0].height", "is missing", "leave both out"),
    (changed(images=[{"path": "a.png", "spacing_mm": [0, 1]}]), "images[0].spacing_mm", "is [0, 1]", "leave it out"),
    (changed(facts=[{"finding": "x", "size_mm": -3}]), "facts[0].size_mm", "is -3", "leave it out"),
    (changed(group=""), "group", "is ''; expected a text", "leave it out"),
    (changed(split="trian"), "split", "is 'trian'", "did you mean 'train'?"),
    (
        {"image": "a.png", "images": ["a.png"], "question": "?", "answer": "x"},
        "image",
        "both image and images",
        "keep images",
    ),
    ({"image": "a.png", "question": "", "answer": "x"}, "question", "is ''; expected a text", ""),
]


FAULT_IDS = [f"{field or 'line'}-{number}" for number, (_, field, *_) in enumerate(FAULTS)]


@pytest.mark.parametrize(("record", "field", "problem", "fix"), FAULTS, ids=FAULT_IDS)
def test_a_fault_names_file_line_field_and_fix(folder: Path, record: Any, field: str, problem: str, fix: str) -> None:
    if isinstance(record, dict) and record.get("id") == FULL["id"]:
        record = {**record, "id": "other"}
    path = write(folder, FULL, "", record)
    with pytest.raises(RecordError) as caught:
        load_jsonl(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:3: " + (f"{field}: " if field else ""))
    assert problem in message
    assert fix in message
    listed = [str(fault) for fault in iter_faults(path) if fault.level == "error"]
    assert any(text.startswith(f"{path}:3: ") and problem in text and fix in text for text in listed)


def test_validate_lists_every_fault_not_the_first_only(folder: Path) -> None:
    path = write(
        folder,
        changed(boxes=[{"label": "", "xyxy_px": [9, 9, 1, 1]}, {"lable": "x", "xyxy_px": [0, 0, 1, 1]}], split="dev"),
        "nonsense",
        changed(id="third", images=[{"path": "missing.png"}]),
    )
    found = [(fault.line, fault.field) for fault in iter_faults(path)]
    assert found == [
        (1, "boxes[0].xyxy_px"), (1, "boxes[0].label"), (1, "boxes[1].lable"), (1, "boxes[1].label"), (1, "split"),
        (2, ""), (3, "images[0].path"),
    ]  # fmt: skip


def test_validate_compares_the_record_with_its_picture(folder: Path) -> None:
    digest = hashlib.sha256((folder / "a.png").read_bytes()).hexdigest()
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:20])
    wrong_size = {"path": "a.png", "width": 400, "height": 30, "sha256": digest}
    wrong_digest = {"path": "a.png", "sha256": "0" * 64}
    path = write(
        folder,
        changed(id="1", images=[wrong_size]),
        changed(id="2", images=[wrong_digest]),
        changed(id="3", images=[{"path": "broken.png"}]),
        changed(id="4", images=[{"path": "a.png"}], boxes=[{"label": "x", "xyxy_px": [0, 0, 41, 9]}]),
    )
    messages = [str(fault) for fault in iter_faults(path)]
    assert "images[0].width: the record says 400x30 px, the file has 40x30" in messages[0]
    assert f"images[0].sha256: a.png: its sha256 is {digest}, the record says 000" in messages[1]
    assert "broken.png" in messages[2]
    assert "boxes[0].xyxy_px: (x) is [0, 0, 41, 9]: outside its image of 40x30 px" in messages[3]
    assert len(messages) == 4


def test_a_patient_in_two_splits_and_a_repeated_id_are_faults(folder: Path) -> None:
    path = write(folder, FULL, changed(split="test"), changed(id="b", split=..., group="other"))
    messages = [str(fault) for fault in iter_faults(path)]
    assert "id: 'ct-7/vqa' is also the id of line 1" in messages[0]
    assert "group 'ct-7' is in split 'test' here and in 'train' in line 1" in messages[1]
    assert "one patient" in messages[1]
    assert len(messages) == 2
    with pytest.raises(RecordError, match=r":2: id: 'ct-7/vqa' is also the id of line 1"):
        load_jsonl(path)


def test_a_missing_licence_is_one_warning_for_the_file(folder: Path) -> None:
    path = write(folder, changed(licence=...), changed(id="b", licence=...))
    (fault,) = iter_faults(path)
    assert fault.level == "warning"
    assert "licence: warning: is missing in 2 record(s), the first in line 1" in str(fault)
    assert len(load_jsonl(path)) == 2


def test_bytes_that_are_no_text_and_an_empty_file(folder: Path) -> None:
    path = folder / "my.jsonl"
    path.write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(RecordError, match=r"my\.jsonl:1: is not UTF-8 at byte 8"):
        load_jsonl(path)
    path.write_text("\n\n")
    with pytest.raises(RecordError, match="holds no sample"):
        load_jsonl(path)
    assert [fault.problem for fault in iter_faults(path)] == ["holds no sample"]


KEYS = [*FULL, "image", "question", "path", "type", "text", "role", "content", "xyxy", "label", "value", "crop"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from([*FULL, "image", "question", "choices", "system"]), JSON, max_size=6))
@settings(max_examples=200, deadline=None)
def test_no_json_object_makes_reading_fail_in_another_way(values: dict[str, Any]) -> None:
    for record in (values, {**FULL, **values}):
        try:
            sample = sample_from_json(record)
        except RecordError as error:
            assert error.faults
        else:
            assert sample_from_json(sample.to_json()) == sample
