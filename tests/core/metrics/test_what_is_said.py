"""The text that counts in a completion, and choices without a list of them."""

from types import SimpleNamespace
from typing import Any

import pytest

from medmo_core.boxes import Boxes, ImageBoxes
from medmo_core.findings import MAX_TEXT
from medmo_core.metrics import vqa_correct
from medmo_core.metrics.matching import box_problems
from medmo_core.metrics.text import completion_text, final_answer, normalise


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("said", "said"),
        ([{"role": "assistant", "content": "said"}], "said"),
        ([{"content": "first"}, {"content": "asked"}, {"content": "last"}], "last"),
        ([{"role": "assistant"}], ""),
        ([{"content": 5}], ""),
        (["said", " on"], ""),
        ([{"content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]}], "ab"),
        ({"content": "said"}, "said"),
        ([{"text": 5}, {"text": "said"}], "said"),
        ([{"content": "first"}, "last"], ""),
        ([], ""),
        ((), ""),
        (None, ""),
        ("x" * (MAX_TEXT + 1), "x" * (MAX_TEXT + 1)),  # readers have their own limits: a box behind it counts
    ],
)
def test_the_last_message_is_what_is_said(completion: Any, text: str) -> None:
    assert completion_text(completion) == text


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>a, no: b</think> yes ", "yes"),
        ("<think>one</think>two<think>three</think> yes", "two yes"),
        ("it began before</think> yes", "yes"),
        ("a</think>b</think> yes", "yes"),
        ("<think>never ends yes", ""),
        ("<think>no</think>words <answer> yes </answer> words", "yes"),
        ("<answer>yes", "yes"),
        ("<answer>yes</answer><answer>no</answer>", "yes"),
        ("two\nlines", "two\nlines"),
    ],
)
def test_thinking_and_tags_are_taken_off(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The LEFT-sided an_effusion!", "left sided effusion"),
        ("-3.5 mm.", "-3.5 mm"),
        ("3.5 - 4.", "3.5 4"),
        ("\uff13\u2075 mm", "35 mm"),
        ("stra\u00dfe", "strasse"),
        ("theatre", "theatre"),
        ("x" * (MAX_TEXT + 1), "x" * MAX_TEXT),
    ],
)
def test_normal_form(text: str, normal: str) -> None:
    assert normalise(text) == normal


@pytest.mark.parametrize(("text", "right"), [("The answer is MR.", True), ("mr", True), ("CT", False), ("", False)])
def test_a_choice_without_choices_is_a_text(text: str, right: bool) -> None:
    assert vqa_correct(text, SimpleNamespace(type="choice", value="MR", choices=())) == right  # type: ignore[arg-type]


def test_boxes_of_several_images_are_told_apart_by_their_image() -> None:
    """The same label in another image has another number, and no label is one of all images."""
    first, second = (
        Boxes([[0, 0, 4, 4]], "pixel", size, labels) for size, labels in (((8, 8), ("a",)), ((9, 7), ("a",)))
    )
    none = Boxes.empty((8, 8))
    problems = box_problems([ImageBoxes((none, second), 0), first], [ImageBoxes((first, second), 0), first])
    assert problems.pred_offsets.tolist() == [0, 1, 2] and problems.truth_offsets.tolist() == [0, 2, 3]
    in_second, alone = problems.pred_labels.tolist()
    assert problems.truth_labels.tolist()[1:] == [in_second, alone]
    assert len({in_second, alone, problems.truth_labels[0].item()}) == 3
    assert problems.image_size.tolist() == [[8, 8], [8, 8]]
    with pytest.raises(ValueError, match="more or fewer images"):
        box_problems([first], [ImageBoxes((first, second), 0)])
    with pytest.raises(ValueError, match="1 predictions for 0 samples"):
        box_problems([first], [])
