"""Short forms of a record, each rule by itself, and the small questions that are asked of a record."""

from pathlib import Path
from typing import Any, BinaryIO

import pytest

from medmo_core.data.records.sample import message_parts, message_text
from medmo_core.data.records.shorthand import expand
from medmo_core.data.records.store import store_of

BOX = {"label": "liver", "xyxy": [0, 0, 1, 1]}
ASKED = [{"role": "user", "content": "Where?"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "There."}]


@pytest.mark.parametrize(
    ("record", "field", "value"),
    [
        ({"image": "a.png"}, "images", [{"path": "a.png"}]),
        ({"images": ["a.png", {"path": "b", "width": 4}]}, "images", [{"path": "a.png"}, {"path": "b", "width": 4}]),
        ({"boxes": [BOX]}, "boxes", [{"label": "liver", "xyxy_px": [0, 0, 1, 1]}]),
        ({"boxes": [{"xyxy": 1, "xyxy_px": 2}, 3]}, "boxes", [{"xyxy": 1, "xyxy_px": 2}, 3]),
        ({"answer": True}, "answer", {"type": "yesno", "value": "yes"}),
        ({"answer": False}, "answer", {"type": "yesno", "value": "no"}),
        ({"answer": " No. "}, "answer", {"type": "yesno", "value": "No"}),
        ({"answer": "A liver. "}, "answer", {"type": "open", "value": "A liver. "}),
        ({"answer": "yes", "choices": ["yes"]}, "answer", {"type": "choice", "value": "yes", "choices": ["yes"]}),
        ({"boxes": [BOX]}, "answer", {"type": "boxes"}),
        ({"boxes": []}, "answer", {"type": "boxes"}),
        ({"boxes": [BOX], "task": "grounding", "messages": ASKED}, "answer", {"type": "boxes"}),
        ({"boxes": [BOX], "task": "vqa"}, "answer", None),
        ({"boxes": [BOX], "messages": ANSWERED}, "answer", None),
        ({"boxes": [BOX], "messages": []}, "answer", {"type": "boxes"}),
        ({"boxes": [BOX], "messages": "no list"}, "answer", {"type": "boxes"}),
        ({}, "answer", None),
        ({}, "task", "text"),
        ({"image": "a.png"}, "task", "vqa"),
        ({"image": "a.png", "boxes": [BOX]}, "task", "grounding"),
        ({"image": "a.png", "answer": {"type": "report", "value": "A scar."}}, "task", "report"),
        ({"image": "a.png", "answer": {"type": "report"}, "task": "caption"}, "task", "caption"),
    ],
)  # fmt: skip
def test_each_rule(record: dict[str, Any], field: str, value: Any) -> None:
    before = dict(record)
    faults: list[Any] = []
    assert expand(record, faults).get(field) == value
    assert faults == [] and record == before


def test_a_question_stands_behind_its_images_and_its_system_turn() -> None:
    full = expand({"images": ["a.png", "b.png"], "question": "Which?", "system": "Be brief."}, [])
    assert full["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which?"}]},
    ]
    assert not {"question", "system", "image"} & full.keys()


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ({"image": "a.png", "images": ["b.png"]}, "image"), ({"question": "?", "messages": ASKED}, "question"),
        ({"question": ""}, "question"), ({"question": 5}, "question"),
    ],
)  # fmt: skip
def test_what_contradicts_is_noted(record: dict[str, Any], field: str) -> None:
    faults: list[Any] = []
    expand(record, faults)
    assert [fault.field for fault in faults] == [field]


def test_the_words_of_a_turn() -> None:
    parts = [
        {"type": "image"},
        {"type": "text", "text": "a "},
        {"type": "boxes", "boxes": [0]},
        {"type": "text", "text": "b"},
    ]
    assert message_text({"role": "user", "content": parts}) == "a b"
    assert message_text({"role": "user", "content": "a b"}) == "a b"
    assert message_parts({"role": "user", "content": "a"}) == [{"type": "text", "text": "a"}]


def test_a_folder_is_no_store() -> None:
    class Store:
        def open(self, path: str) -> BinaryIO:
            raise NotImplementedError

    store = Store()
    assert store_of(store) is store
    assert [store_of(root) for root in (None, "folder", Path("folder"))] == [None] * 3
