"""Faults as sentences: what no text file holds is found at any depth, and indices beyond the end are answered."""

import re
from typing import Any

import pytest

from medmo_core.data.records.faults import DEEPEST, Fault, RecordError, text_faults
from medmo_core.data.records.read import sample_from_json

HALF = "a\ud800"


def nested(levels: int) -> Any:
    value: Any = "end"
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("values", "fields"),
    [
        ({"id": "\u00e9", "n": 3, "x": None}, []),
        (HALF, [""]),
        ({"id": HALF}, ["id"]),
        ({"facts": [{"finding": "a"}, {"finding": HALF}]}, ["facts[1].finding"]),
        ({"a": {HALF: 1}}, [f"a.{HALF}"]),
        ([["x", HALF], HALF], ["[1]", "[0][1]"]),
    ],
)
def test_halves_of_characters_are_found_where_they_stand(values: Any, fields: list[str]) -> None:
    found = text_faults(values)
    assert [fault.field for fault in found] == fields
    assert all("lone surrogate" in fault.problem and fault.expected == "UTF-8 text" for fault in found)


def test_nesting_has_an_end() -> None:
    assert text_faults(nested(DEEPEST)) == []
    (fault,) = text_faults({"a": [HALF], "b": nested(DEEPEST)})
    assert (fault.field, fault.problem) == ("", f"is nested deeper than {DEEPEST} levels")


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Fault("a", "is 5", "a text", "write one", file="my.jsonl", line=3),
         "my.jsonl:3: a: is 5; expected a text; fix: write one"),
        (Fault("", "is empty", level="warning", file="my.jsonl"), "my.jsonl: warning: is empty"),
        (Fault("a", "is 5").at("f", 2), "f:2: a: is 5"),
    ],
)  # fmt: skip
def test_a_fault_is_one_sentence(fault: Fault, text: str) -> None:
    assert str(fault) == str(RecordError([fault])) == text
    assert str(RecordError([fault] * 3)) == f"{text} (and 2 more; run `medmo validate`)"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"boxes": [{"label": "a", "xyxy": [0, 0, 1, 1], "image": 1}]},
         r"boxes\[0\]\.image: is 1; expected an index below 1; fix: count from 0"),
        ({"answer": {"type": "boxes", "image": 2}, "boxes": []},
         r"answer\.image: is 2; expected an index below 1; fix: count from 0"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "boxes", "boxes": [0, 3]}]}]},
         "messages: a turn names box 3; expected an index below 0; fix: count from 0, or add the box"),
        ({"images": [], "messages": [{"role": "user", "content": "?"}], "answer": {"type": "boxes"}, "boxes": []},
         "images: the answer is boxes but there is no image; expected an image; fix: add it"),
        ({"answer": {"type": "boxes"}},
         r"boxes: is missing, and the answer is boxes; expected a list; fix: write \[\]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_answered(changes: dict[str, Any], words: str) -> None:
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
    record = {"id": "a", "images": [{"path": "a.png", "width": 9, "height": 9}], "messages": [turn], "answer": "yes"}
    with pytest.raises(RecordError) as caught:
        sample_from_json({**record, **changes})
    assert any(re.search(words, str(fault)) for fault in caught.value.faults), caught.value.faults
