"""Every grammar prints and parses; hostile text never raises, never hangs, and says what was wrong."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medmo_core.boxes import GRAMMARS, parse_boxes

SIZE = (200, 100)
# text, frame of its numbers, grammar, labels, rows
WRITTEN = [
    ('[{"bbox_2d": [10, 20, 30, 40], "label": "liver"}]', "norm1000", "qwen3_vl_json", ["liver"], [[10, 20, 30, 40]]),
    (
        'Here:\n```json\n[\n\t{"bbox_2d": [1, 2, 3, 4], "label": "a"},\n'
        '\t{"bbox_2d": [5, 6, 7, 8], "label": "b"}\n]\n```',
        "norm1000",
        "qwen3_vl_json",
        ["a", "b"],
        [[1, 2, 3, 4], [5, 6, 7, 8]],
    ),
    ('{"bbox_2d": [1, 2, 3, 4], "label": "a"}', "norm1000", "qwen3_vl_json", ["a"], [[1, 2, 3, 4]]),
    (
        '[{"bbox_2d": [[1, 2, 3, 4], [5, 6, 7, 8]], "label": "a"}]',
        "norm1000",
        "qwen3_vl_json",
        ["a"] * 2,
        [[1, 2, 3, 4], [5, 6, 7, 8]],
    ),
    ("[{'bbox_2d': [1, 2, 3, 4], 'label': 'a'}]", "norm1000", "qwen3_vl_json", ["a"], [[1, 2, 3, 4]]),
    (
        "Nodule <box>[[1, 2, 3, 4],[5,6,7,8]]</box>",
        "norm1000",
        "medmo_box",
        ["Nodule"] * 2,
        [[1, 2, 3, 4], [5, 6, 7, 8]],
    ),
    ("Nodule: [ [1, 2, 3, 4] ]", "pixel", "medmo_label_list", ["Nodule"], [[1, 2, 3, 4]]),
    (
        "fracture: [1, 2, 3, 4]\nmetal: [5, 6, 7, 8]",
        "pixel",
        "medmo_label_list",
        ["fracture", "metal"],
        [[1, 2, 3, 4], [5, 6, 7, 8]],
    ),
    ("[ 1, 2, 3, 4 ]", "pixel", "medmo_bare_list", [""], [[1, 2, 3, 4]]),
    ("Difference detected [[1, 2, 3, 4]]", "pixel", "medmo_difference", [""], [[1, 2, 3, 4]]),
    (
        '{"box_format": "pixel", "detections": [{"label": "Heart", "bbox": [1.5, 2, 3, 4]}]}',
        "norm1000",  # the text itself says otherwise
        "slake_json",
        ["Heart"],
        [[1.5, 2, 3, 4]],
    ),
    (
        "<answer>\nNodule: <box> 1, 2, 3, 4 </box>\nMass: <box> 5, 6, 7, 8 </box>\n</answer>",
        "pixel",
        "medmo_answer_box",
        ["Nodule", "Mass"],
        [[1, 2, 3, 4], [5, 6, 7, 8]],
    ),
    (
        "<answer>\nCell: <box> [1, 2, 3, 4], [5, 6, 7, 8] </box>\n</answer>",
        "pixel",
        "medmo_answer_cells",
        ["Cell"] * 2,
        [[1, 2, 3, 4], [5, 6, 7, 8]],
    ),
    (
        "<|object_ref_start|>dog<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>",
        "norm1000",
        "qwen2_vl_tokens",
        ["dog"],
        [[1, 2, 3, 4]],
    ),
    ("A <ref>dog</ref><box>(1,2),(3,4)</box> runs", "norm1000", "qwen_vl_tags", ["dog"], [[1, 2, 3, 4]]),
    ("<ref>dog</ref><box>1 2 3 4</box>", "norm1000", "minicpm_box", ["dog"], [[1, 2, 3, 4]]),
    (
        'Final: ```json\n[{"box_2d": [2, 1, 4, 3], "label": "a"}]\n```',
        "norm1000",
        "medgemma_json",
        ["a"],
        [[1, 2, 3, 4]],
    ),
    (
        "<think>hm [9, 9, 9, 9]</think><answer>[{'Position': [1, 2, 3, 4], 'Confidence': 0.9}]</answer>",
        "norm1000",
        "visual_rft",
        [""],
        [[1, 2, 3, 4]],
    ),
    (
        "<|object_ref_start|>a<|object_ref_end|><|box_start|><0><0><999><999><|box_end|>",
        "norm1000",
        "rex_omni",
        ["a"],
        [[0, 0, 1000, 1000]],
    ),
]


@pytest.mark.parametrize(
    ("text", "frame", "grammar", "labels", "rows"), WRITTEN, ids=[w[2] + str(i) for i, w in enumerate(WRITTEN)]
)
def test_published_forms(text: str, frame: str, grammar: str, labels: list[str], rows: list[list[float]]) -> None:
    parsed = parse_boxes(text, SIZE, frame=frame)
    assert (parsed.ok, parsed.grammar, list(parsed.boxes.labels)) == (True, grammar, labels), parsed
    assert torch.allclose(parsed.boxes.xyxy, torch.tensor(rows, dtype=torch.float64), rtol=0, atol=1e-9)
    assert parsed.boxes.frame == ("pixel" if grammar == "slake_json" else frame)


def test_all_published_grammars_have_a_case() -> None:
    assert {w[2] for w in WRITTEN} | {"qwen3_vl_json_fenced", "medmo_class_list"} == set(GRAMMARS)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        " [ ] ",
        "```json\n[]\n```",
        "<answer></answer>",
        "<answer>\n</answer>",
        "<answer>[]</answer>",
        "<box>[]</box>",
        "None found.",
        "No disease detected.",
        "There are no lesions in this image.",
        "Nodule: []",
        "<think>looked</think>[]",
        '{"box_format": "pixel", "detections": []}',
    ],
)
def test_an_explicit_no_box_is_ok(text: str) -> None:
    parsed = parse_boxes(text, SIZE)
    assert parsed.ok and len(parsed.boxes) == 0 and parsed.grammar is not None, parsed
    assert parse_boxes(text, SIZE, "qwen3_vl_json").ok


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The liver looks fine.",
        "yes",
        "No, but there is one at the left",
        "12 34 56 78",
        "No idea. The mass is large.",
        "{}",
    ],
)
def test_silence_is_not_a_no(text: str) -> None:
    parsed = parse_boxes(text, SIZE)
    assert not parsed.ok and parsed.grammar is None and "no" in parsed.errors[0]


@pytest.mark.parametrize(
    ("text", "kept", "word"),
    [
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "a"}, {"bbox_2d": [5, 6, 7, 8], "la', 1, "cut off"),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "a"}', 1, "no closing bracket"),
        ('```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "a"}, {"bbox_2d": [5', 1, "cut off"),
        ('{"box_format": "pixel", "detections": [{"label": "a", "bbox": [1, 2, 3, 4]}, {"label"', 1, "cut off"),
        ("Nodule <box>[[1, 2, 3, 4], [5, 6", 1, "</box>"),
        ("Nodule: [[1, 2, 3, 4], [5, 6", 1, "cut off"),
        ("<answer>a: <box> 1, 2, 3, 4 </box>\nb: <box> 5, 6", 1, "</box>"),
        ("<answer>a: <box> 1, 2, 3, 4 </box>", 1, "ends inside <answer>"),
        ("<think>the box is [1, 2, 3, 4]", 0, "ends inside <think>"),
    ],
)
def test_cut_off_text_keeps_its_complete_boxes(text: str, kept: int, word: str) -> None:
    parsed = parse_boxes(text, SIZE)
    assert len(parsed.boxes) == kept and not parsed.ok and word in " ".join(parsed.errors), parsed


def test_the_wrong_grammar_is_read_but_not_ok() -> None:
    parsed = parse_boxes("liver <box>[[1, 2, 3, 4]]</box>", SIZE, "qwen3_vl_json")
    assert (
        not parsed.ok and len(parsed.boxes) == 1 and parsed.errors == ("written as medmo_box, expected qwen3_vl_json",)
    )
    bare = parse_boxes("liver: <box> 1, 2, 3, 4 </box>", SIZE, "medmo_answer_box")
    assert not bare.ok and "not inside <answer>" in bare.errors[0]


PIECES = st.sampled_from(
    [
        "[",
        "]",
        "[[",
        "]]",
        "{",
        "}",
        '"',
        "'",
        ":",
        ",",
        "(",
        ")",
        "\n",
        " ",
        "1",
        "-3.5",
        "1e9",
        "nan",
        "bbox_2d",
        '"bbox_2d"',
        "'Position'",
        '"detections"',
        '"label"',
        "liver",
        "<box>",
        "</box>",
        "<answer>",
        "</answer>",
        "<think>",
        "</think>",
        "```json\n",
        "```",
        "<|box_start|>",
        "<|box_end|>",
        "<ref>",
        "</ref>",
        "<12>",
        '{"bbox_2d": [1, 2, 3, 4], "label": "a"}',
        "\\",
        "\x00",
        "\ud800",
        "no",
        "none found",
    ]
)


@given(
    st.one_of(st.text(max_size=80), st.lists(PIECES, max_size=25).map("".join)), st.sampled_from(["auto", *GRAMMARS])
)
@settings(max_examples=500, deadline=None)
def test_no_text_raises(text: str, grammar: str) -> None:
    parsed = parse_boxes(text, SIZE, grammar)
    assert parsed.ok == (parsed.grammar is not None and not parsed.errors)
    assert parsed.boxes.size == SIZE


HOSTILE = [
    "[",
    "{",
    "[[",
    '{"bbox_2d":',
    '{"bbox_2d":[1,2,3,4],"label":"a"},',
    "<box>",
    "<box>[",
    "<|box_start|>",
    "<think>",
    "<answer>",
    "```",
    "'bbox_2d': '",
    '"',
    "1,",
    "no ",
    " ",
    "a:",
    "<ref>",
    "[1,2,3,4]",
    "{'bbox_2d'",
    "(",
    "\\",
    '{"a":[',
    '"bbox_2d" {"a":{"',
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_hundred_thousand_characters_are_read_in_a_moment(piece: str) -> None:
    for text in (piece * (100_000 // len(piece)), "'bbox_2d'" + piece * (90_000 // len(piece))):
        start = time.process_time()
        parse_boxes(text, SIZE)
        assert time.process_time() - start < 5.0, piece  # a rule of quadratic time takes minutes
