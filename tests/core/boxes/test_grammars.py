"""Every grammar prints what is read back, whatever the label, or says that it cannot."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medmo_core.boxes import GRAMMARS, Boxes, parse_boxes, print_boxes
from medmo_core.boxes.grammars import DIFFERENCE

SIZE = (1000, 1000)
FREE = st.text(max_size=12)
LINE = st.from_regex(r"\A[A-Za-z\u00e9\u6c34][A-Za-z0-9 ().'_/\u00e9\u6c34-]{0,10}[A-Za-z0-9)]\Z")


@st.composite
def labelled_boxes(draw: st.DrawFn, labels: str) -> Boxes:
    size = draw(st.tuples(st.integers(1, 3000), st.integers(1, 3000)))
    rows, names = [], []
    for _ in range(draw(st.integers(0, 5))):
        xs = sorted(draw(st.floats(0, size[0])) for _ in range(2))
        ys = sorted(draw(st.floats(0, size[1])) for _ in range(2))
        rows.append([xs[0], ys[0], xs[1], ys[1]])
        names.append({"any": draw(FREE), "line": draw(LINE), "none": ""}[labels])
    return Boxes(torch.tensor(rows, dtype=torch.float64).reshape(-1, 4), "pixel", size, tuple(names))


@pytest.mark.parametrize("grammar", GRAMMARS)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_what_is_printed_is_read_back(grammar: str, data: st.DataObject) -> None:
    boxes = data.draw(labelled_boxes(GRAMMARS[grammar].labels))
    frames = ["norm1000"] if grammar == "rex_omni" else ["norm1000", "pixel", "unit"]
    frame = data.draw(st.sampled_from(frames))
    text = print_boxes(boxes, grammar, frame)
    unit = {"norm1000": 1000 / GRAMMARS[grammar].bins, "pixel": 1.0, "unit": 1e-4}[frame]
    for asked in (grammar, "auto"):
        parsed = parse_boxes(text, boxes.size, asked, frame)
        assert parsed.ok and not parsed.errors, (text, parsed.errors)
        assert parsed.boxes.frame == frame and parsed.boxes.labels == boxes.labels, text
        kept = boxes.to(frame).xyxy
        thin = (kept[:, 2:] - kept[:, :2] < unit).repeat(1, 2)  # such a side is written a unit long
        assert bool(((parsed.boxes.xyxy - kept).abs() <= unit * torch.where(thin, 1.0, 0.5) + 1e-6).all()), text
    assert parse_boxes(text, boxes.size, grammar, frame).grammar == grammar


@pytest.mark.parametrize(
    ("grammar", "label"),
    [
        ("medmo_box", "two\nlines"),
        ("medmo_label_list", "a [b]"),
        ("medmo_bare_list", "liver"),
        ("qwen_vl_tags", "a</ref>"),
        ("medmo_answer_box", " padded"),
        ("medmo_box", "a:"),
    ],
)
def test_a_label_that_would_not_come_back_is_refused(grammar: str, label: str) -> None:
    with pytest.raises(ValueError, match=f"box 0: grammar '{grammar}'"):
        print_boxes(Boxes(torch.zeros(1, 4), "pixel", SIZE, (label,)), grammar)


# labels that a grammar of another form could take for its own words
WORDS = [
    "detections", "Detections", "box_format", "bbox_2d", '"bbox_2d"', "'detections'", '"box_format": "pixel"',
    DIFFERENCE, "difference detected", "Position", "label", "None found.", "No disease detected.", "no", "Image 2",
    "image 1", "answer", "think", "json", "norm1000", "box", "null", "1, 2", "Confidence",
]  # fmt: skip


@pytest.mark.parametrize("name", [name for name, grammar in GRAMMARS.items() if grammar.labels != "none"])
@pytest.mark.parametrize("label", WORDS)
def test_a_label_may_be_a_word_of_a_grammar(name: str, label: str) -> None:
    given = Boxes(torch.tensor([[10.0, 20.0, 30.0, 40.0], [100, 100, 300, 500]]), "norm1000", SIZE, (label, label))
    parsed = parse_boxes(print_boxes(given, name, "norm1000"), SIZE, name)
    assert parsed.ok and parsed.boxes.labels == (label, label) and parsed.boxes.frame == "norm1000", parsed
    if name.startswith("qwen3_vl_json"):
        assert parse_boxes(print_boxes(given, name), SIZE).boxes.labels == (label, label)
