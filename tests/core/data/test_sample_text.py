"""Chats of samples in a checkpoint's words, without a tokenizer and without reading an image."""

from typing import Any

import pytest

from medmo_core.boxes import parse_boxes
from medmo_core.data.records.read import sample_from_json
from medmo_core.data.records.sample import Sample
from medmo_core.data.sample_text import SampleText, independent_turns
from medmo_core.profile import MEDMO, MEDMO_CANVAS768, QWEN3_VL, CheckpointProfile

GROUNDED = {
    "answer": None,
    "image": {"path": "not-there.png", "width": 128, "height": 96},
    "boxes": [{"label": "liver", "xyxy": [32, 24, 64, 96]}],
}


def sample(**fields: Any) -> Sample:
    return sample_from_json({"id": "s", "image": "not-there.png", "question": "Where?", "answer": "here", **fields})


@pytest.mark.parametrize(
    ("profile", "text"),
    [
        (QWEN3_VL, '[{"bbox_2d": [250, 250, 500, 1000], "label": "liver"}]'),
        (MEDMO, "liver <box>[[250, 250, 500, 1000]]</box>"),
        (MEDMO_CANVAS768, "liver <box>[[192, 192, 384, 768]]</box>"),
        (CheckpointProfile(frame="pixel", grammar="medmo_answer_box"), "liver: <box> 32, 24, 64, 96 </box>"),
    ],
    ids=["qwen3_vl", "medmo", "canvas", "pixel"],
)
def test_boxes_are_written_as_the_profile_says(profile: CheckpointProfile, text: str) -> None:
    given = sample(**GROUNDED)
    target = SampleText(profile).target_text(given)
    assert text in target
    parsed = parse_boxes(target, profile.text_size((128, 96)), profile.grammar, profile.frame)
    assert parsed.boxes.resize((128, 96)).xyxy.tolist() == [[32, 24, 64, 96]]


def test_no_box_is_an_answer_too() -> None:
    given = sample(**{**GROUNDED, "boxes": []})
    assert parse_boxes(SampleText(QWEN3_VL).target_text(given), (128, 96)).ok


def test_the_question_is_the_turn_to_be_answered_in_the_profiles_words() -> None:
    image, where = {"type": "image"}, {"type": "text", "text": "What is at "}
    turns = [
        {"role": "user", "content": [image, {"type": "text", "text": "Which organ?"}]},
        {"role": "assistant", "content": "The liver."},
        {"role": "user", "content": [where, {"type": "boxes", "boxes": [0]}, {"type": "text", "text": "?"}]},
    ]
    images, boxes = [GROUNDED["image"]], GROUNDED["boxes"]
    asked = sample_from_json({"id": "s", "images": images, "messages": turns, "boxes": boxes, "answer": "a cyst"})
    assert SampleText(MEDMO).question_text(asked) == "What is at liver <box>[[250, 250, 500, 1000]]</box>?"
    assert SampleText(QWEN3_VL).target_text(asked) == "a cyst"
    told = SampleText(CheckpointProfile(system_prompt="Be exact.")).messages(asked)
    assert [turn["role"] for turn in told] == ["system", "user", "assistant", "user", "assistant"]
    assert told[-1]["content"] == "a cyst"


def test_an_answered_question_is_asked_again_without_its_answer() -> None:
    turns = ({"role": "user", "content": "Which?"}, {"role": "assistant", "content": "This."})
    text, given = SampleText(QWEN3_VL), Sample("s", "text", messages=turns)
    assert (text.question_text(given), text.target_text(given)) == ("Which?", "This.")
    assert text.messages(given, for_generation=True) == [turns[0]]
    assert text.messages(given) == list(turns)


def test_a_conversation_of_no_turns_holds_no_question() -> None:
    assert independent_turns([]) == independent_turns([{"role": "system", "content": "Be exact."}]) == []
