"""All boxes of an answer count, wherever they stand; labels may be any words; and reading costs linear time."""

import random
import sys
from time import process_time
from typing import Any

import pytest

from medmo_core.boxes import Boxes, parse_boxes, parse_many, print_boxes
from medmo_core.boxes.objects import MAX_NUMBER, MAX_UNREADABLE
from medmo_core.boxes.recognise import MAX_TEXT
from medmo_core.profile import QWEN3_VL
from medmo_core.rewards import box_reward, format_reward

SIZE = (1000, 1000)
TRUE, SPURIOUS, THIRD = [100, 100, 300, 500], [500, 500, 900, 900], [0, 600, 90, 700]


def said(*rows: list[int], key: str = "bbox_2d") -> str:
    return "[" + ", ".join(f'{{"{key}": {row}, "label": "liver"}}' for row in rows) + "]"


def fence(text: str) -> str:
    return f"```json\n{text}\n```"


# text, boxes of it, whether it is in good form
ANSWERS = [
    (fence(said(TRUE)) + "\n" + said(SPURIOUS, THIRD), [TRUE, SPURIOUS, THIRD], True),
    (said(SPURIOUS) + fence(said(TRUE)), [SPURIOUS, TRUE], True),
    (fence("let me look") + said(TRUE), [TRUE], True),
    ("```\n\n```\n" + fence(said(TRUE)), [TRUE], True),
    (fence(said(TRUE)) + " and " + fence(said(SPURIOUS)), [TRUE, SPURIOUS], True),
    (f"```json\n{said(TRUE)}", [TRUE], True),
    (f"{said(TRUE)}\n```", [TRUE], True),
    (fence(said(TRUE)) + "\nNothing else is seen.", [TRUE], True),
    (fence("[]") + said(TRUE), [TRUE], False),
    (fence("[]") + fence(said(TRUE)), [TRUE], False),
    (said(TRUE) + f"\nspleen: {SPURIOUS}", [TRUE, SPURIOUS], False),
    (said(TRUE) + f"\nspleen <box>[{SPURIOUS}]</box>", [TRUE, SPURIOUS], False),
    (said(TRUE) + "<|box_start|>(500,500),(900,900)<|box_end|>", [TRUE, SPURIOUS], False),
    (f"liver <box>[{TRUE}]</box> {SPURIOUS}", [TRUE, SPURIOUS], False),
    (f"liver <box>[{TRUE}]</box><|box_start|>(500,500),(900,900)<|box_end|>", [SPURIOUS, TRUE], False),
    (f"<answer>{said(TRUE)}</answer>", [TRUE], True),
    (f"<answer>{said(TRUE)}</answer>{said(SPURIOUS)}", [TRUE, SPURIOUS], False),
    (f"{SPURIOUS}<answer>{said(TRUE)}</answer>", [SPURIOUS, TRUE], False),
    (f"<answer>{said(TRUE)}</answer><answer>{said(SPURIOUS)}</answer>", [TRUE, SPURIOUS], True),
    (f"<answer>{fence(said(TRUE))}{said(SPURIOUS)}</answer>", [TRUE, SPURIOUS], True),
    (f"<think>{said(SPURIOUS)}</think>{said(TRUE)}", [TRUE], True),
    (f"{said(SPURIOUS)}</think>{said(TRUE)}", [TRUE], True),  # the prompt has begun the thinking
    (f"<think>a</think>{said(TRUE)}<think>{said(THIRD)}</think>{said(SPURIOUS)}", [TRUE, SPURIOUS], True),
    (f"{said(TRUE)}<think>{said(THIRD)}</think>", [TRUE], True),
    (f"{said(TRUE)}<think>{said(THIRD)}", [TRUE], False),
    (f"Seen [1]: {said(TRUE)}", [TRUE], True),
    (f'[{{"bbox_2d": {TRUE}, "bbox_2d": {SPURIOUS}, "label": "liver"}}]', [TRUE, SPURIOUS], True),
    (f'[{{"bbox_2d": {TRUE}, "bbox": {SPURIOUS}, "label": "liver"}}]', [TRUE, SPURIOUS], False),
    (f'[{{"bbox_2d": {TRUE}, "label": "liver", "more": [{SPURIOUS}]}}]', [TRUE, SPURIOUS], False),
    (f'[{{"bbox_2d": {TRUE}, "label": "a", "in": {{"bbox_2d": {SPURIOUS}}}}}]', [TRUE, SPURIOUS], False),
    (f'{{"found": [{{"bbox_2d": {TRUE}, "label": "a"}}]}}', [TRUE], False),
    (f'{{"bbox_2d": {TRUE}, "detections": [{{"bbox": {SPURIOUS}}}]}}', [SPURIOUS, TRUE], False),
    (f"[{{'bbox_2d': {TRUE}, 'bbox_2d': {SPURIOUS}}}]", [TRUE, SPURIOUS], True),
    (said(TRUE) + f' {{"bbox_2d": {SPURIOUS}, "la', [TRUE], False),  # cut off: the last one is not whole
    (said(TRUE) + f" {{ {SPURIOUS}", [TRUE, SPURIOUS], False),
]


@pytest.mark.parametrize(("text", "rows", "good"), ANSWERS)
def test_every_box_of_an_answer_counts(text: str, rows: list[list[int]], good: bool) -> None:
    parsed = parse_boxes(text, SIZE)
    assert parsed.boxes.xyxy.tolist() == rows and parsed.ok == good, parsed
    assert parse_many([text], [SIZE]) == [parsed]


def test_forms_are_told_apart_whatever_their_spaces() -> None:
    assert parse_boxes(f"a <box>[ {TRUE} ]</box>", SIZE).grammar == "medmo_box"
    assert parse_boxes(f"a <box> {TRUE} </box>", SIZE).grammar == "medmo_answer_cells"
    assert print_boxes(Boxes([TRUE], "norm1000", SIZE), "medmo_box") == f"<box>[{TRUE}]</box>"  # type: ignore[arg-type]
    assert parse_boxes('[{"bbox_2d": [1, 2', SIZE).errors[-1] == "no object with readable corners"


def test_a_list_beside_a_fence_keeps_its_label_and_takes_none_from_before_it() -> None:
    parsed = parse_boxes(f"Here they are:\n```\n[{TRUE}]\n```\nspleen: {SPURIOUS}", SIZE)
    assert parsed.boxes.labels == ("", "spleen")


@pytest.mark.parametrize("text", ["No lesions.\n```", "Here:\n```\nNo lesions.\n```", "I see.<answer>None.</answer>"])
def test_a_no_is_read_beside_other_words(text: str) -> None:
    assert parse_boxes(text, SIZE).ok


def _scores(text: str) -> tuple[float | None, float | None]:
    columns: dict[str, Any] = {
        "task": ["grounding"], "boxes": [Boxes([TRUE], "pixel", SIZE, ("liver",))], "image_size": [SIZE],  # type: ignore[arg-type]
        "profile": QWEN3_VL, "answer": [None],
    }  # fmt: skip
    return box_reward([text], **columns)[0], format_reward([text], **columns)[0]


@pytest.mark.parametrize("place", ["{0}\n{1}", "{1}\n{0}", "{0}<answer>{1}</answer>", "{1}```\n{0}\n```"])
def test_a_reward_is_not_payable_by_hiding(place: str) -> None:
    for hidden in (said(SPURIOUS, THIRD), f"x: {SPURIOUS}\ny: {THIRD}", f"x <box>[{SPURIOUS}, {THIRD}]</box>"):
        for shown in (said(TRUE), fence(said(TRUE))):
            score, _ = _scores(place.format(hidden, shown))
            assert score is not None and score < 0.5, place.format(hidden, shown)
    assert _scores(fence(said(TRUE))) == _scores(said(TRUE)) == (1.0, 1.0)


def test_boxes_behind_very_much_text_do_not_hide() -> None:
    for filler in ("x" * MAX_TEXT, "{" * (MAX_UNREADABLE + 1)):
        parsed = parse_boxes(said(TRUE) + filler + said(SPURIOUS), SIZE)
        assert len(parsed.boxes) == 0 and parsed.grammar is None and "none is read" in parsed.errors[0]
    score, _ = _scores(said(TRUE) + " " * 25_000 + said(SPURIOUS))
    assert score is not None and score < 1


def _seconds(text: str) -> float:
    """Return the least of three times of reading, in seconds of this process."""
    best = float("inf")
    for _ in range(3):
        start = process_time()
        parse_boxes(text, SIZE)
        best = min(best, process_time() - start)
    return best


NUMBERS = ["1", "1.", "1.1", ".1", "1e", "-", "1e5", "nan", "9.9e"]


@pytest.mark.parametrize("around", ["[{0}x, 2, 3, 4]", '{{"bbox_2d": [{0}, 2, 3, 4]}}', "<box>({0}x,2),(3,4)</box>"])
@pytest.mark.parametrize("digits", NUMBERS)
def test_long_numbers_cost_linear_time(digits: str, around: str) -> None:
    """8 times the characters take at most 16 times as long; a quadratic rule takes 64 times."""
    short, long = (_seconds(around.format(digits * (size // len(digits)))) for size in (2_000, 16_000))
    assert long < 16 * short + 0.02
    assert len(parse_boxes(around.format("1" * 2_000), SIZE).boxes) == 0


def test_a_number_has_a_length_cap() -> None:
    for number in ("1" * (MAX_NUMBER + 1), "1." + "0" * MAX_NUMBER):
        for text in (f"[{number}, 2, 3, 4]", f'[{{"bbox_2d": [{number}, 2, 3, 4], "label": "a"}}]'):
            assert not parse_boxes(text, SIZE).ok and len(parse_boxes(text, SIZE).boxes) == 0
    assert parse_boxes(f"[1.{'0' * 40}, 2, 3, 4]", SIZE).ok


FUZZED = [
    "[", "]", "[[", "{", "}", '"', "'", ":", ",", " ", "\n", "(", ")", "1", "-", ".", "e", "nan", "x", "\\", "\u2028",
    '"bbox_2d"', '"bbox_2d": [', "'Position': ", '"detections": [', '"label": "', "liver", "<box>", "</box>",
    "<answer>",
    "</answer>", "</think>", "```json\n", "```", "<|box_start|>", "<|box_end|>", "<ref>", "</ref>", "<12>", "no ",
    '{"bbox_2d": [1, 2, 3, 4], "label": "a"}', '"box_format": "pixel"', "[1, 2, 3, 4]", '"image": 2', "- ", "\t", "*",
]  # fmt: skip


def test_any_pieces_are_read_and_many_texts_equal_one_by_one() -> None:
    """500 texts of pieces of all grammars, and of good texts with a piece put in or cut out."""
    rng = random.Random(5)
    texts: list[str] = []
    for index in range(500):
        text = "".join(rng.choice(FUZZED) for _ in range(rng.randint(1, 25)))
        if index % 2:
            good, place = said(TRUE, SPURIOUS), rng.randint(0, 80)
            text = good[:place] + (text[:4] if index % 4 == 1 else "") + good[place + rng.randint(0, 3) :]
        texts.append(text)
    for grammar in ("auto", "qwen3_vl_json", "medmo_box"):
        for text, found in zip(texts, parse_many(texts, [SIZE] * 500, grammar), strict=True):
            assert found == parse_boxes(text, SIZE, grammar), text
            assert found.ok == (found.grammar is not None and not found.errors), text
            assert bool((found.boxes.xyxy[:, 2:] >= found.boxes.xyxy[:, :2]).all()), text


def test_fuzzed_repetition_costs_linear_time() -> None:
    """What 8 times the pieces cost is about 8 times as much, for any pieces."""
    rng = random.Random(7)
    cases = [[rng.choice(FUZZED) for _ in range(rng.randint(1, 3))] for _ in range(60)]
    for pieces in cases:
        piece, start = "".join(pieces), rng.choice(["", '"bbox_2d" {', "[", "<box>"])
        short, long = (_seconds(start + piece * (size // len(piece))) for size in (2_000, 16_000))
        assert long < 24 * short + 0.03, (start, piece)


def test_messages_stay_short_however_long_the_label() -> None:
    rows = ", ".join(["[9, 9, 1, 1]", "[1]"] * 1000)
    parsed = parse_boxes(f'[{{"bbox_2d": [{rows}], "label": "{"x" * 50_000}"}}]', SIZE)
    assert sum(map(sys.getsizeof, parsed.errors)) < 1_000_000


FORMS = [
    lambda row: said(row),
    lambda row: fence(said(row)),
    lambda row: f"liver: {row}",
    lambda row: f"[{row}]",
    lambda row: f"liver <box>[{row}]</box>",
    lambda row: f"<ref>liver</ref><box>{' '.join(map(str, row))}</box>",
    lambda row: "<|box_start|>({},{}),({},{})<|box_end|>".format(*row),
    lambda row: f"[{{'Position': {row}, 'Confidence': 1.0}}]",
    lambda row: f"<answer>{said(row)}</answer>",
    lambda row: f"```\nliver: {row}\n```",
    lambda row: f'{{"box_format": "norm1000", "detections": [{{"label": "liver", "bbox": {row}}}]}}',
]
BETWEEN = ["\n", " ", ", ", " and then\n", "\n- ", ". Nothing else [see above].\n", "\n{note}\n", "\n```\nwords\n```\n"]


def test_no_box_of_any_composition_is_lost() -> None:
    """200 answers put together of all forms, fences and words: the boxes that are read are those that were written."""
    rng = random.Random(3)
    for _ in range(200):
        rows = [sorted(rng.sample(range(500), 2)) + sorted(rng.sample(range(500, 1000), 2)) for _ in range(4)]
        rows = [[a, b, c, d] for a, b, c, d in rows][: rng.randint(1, 4)]
        text = "".join(rng.choice(FORMS)(row) + rng.choice(BETWEEN) for row in rows)
        parsed = parse_boxes(text, SIZE)
        assert sorted(parsed.boxes.xyxy.tolist()) == sorted(rows), (text, parsed)
