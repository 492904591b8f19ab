"""Metrics against independent counts: COCO's IoU, brute force, answers sorted by hand, known distributions."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medmo_core.boxes import Boxes
from medmo_core.metrics import (
    grounding_scores,
    retrieval_ranks,
    retrieval_scores,
    vqa_correct,
)
from medmo_core.metrics.matching import comparable_labels

SIZE = (100, 80)
EDGE = st.integers(0, 30)
SIDE = st.integers(1, 40)
BOX = st.tuples(EDGE, EDGE, SIDE, SIDE).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
LABELLED = st.lists(st.tuples(BOX, st.sampled_from(["liver", "spleen"])), max_size=4)


def boxes(rows: list[tuple[tuple[int, ...], str]], frame: str = "pixel") -> Boxes:
    xyxy = torch.tensor([row for row, _ in rows], dtype=torch.float64).reshape(-1, 4)
    return Boxes(xyxy, "pixel", SIZE, tuple(label for _, label in rows)).to(frame)


def coco_iou(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    mask = pytest.importorskip("pycocotools.mask", reason="the oracle is COCO's own IoU")
    one, other = ([float(v[0]), float(v[1]), float(v[2] - v[0]), float(v[3] - v[1])] for v in (a, b))
    return float(mask.iou([one], [other], [0])[0][0])


@given(LABELLED, LABELLED)
@settings(max_examples=60, deadline=None)
def test_grounding_equals_a_search_over_all_matchings(pred: list[Any], truth: list[Any]) -> None:
    larger = max(len(pred), len(truth))
    best = 0.0
    pay = [[coco_iou(p[0], t[0]) if p[1] == t[1] else 0.0 for t in truth] for p in pred]
    for chosen in set(itertools.permutations([*range(len(truth)), *[-1] * len(pred)], len(pred))):
        best = max(best, sum(row[j] for row, j in zip(pay, chosen, strict=True) if j >= 0))
    (iou,), (f1,) = grounding_scores([boxes(pred, "norm1000")], [boxes(truth)])
    assert iou == pytest.approx(best / larger if larger else 1.0, abs=1e-9)
    assert 0 <= f1 <= 1
    if pred == truth:
        assert (iou, f1) == pytest.approx((1, 1))


def test_grounding_protocol() -> None:
    box, half, away = (10, 10, 30, 30), (10, 10, 20, 30), (60, 60, 70, 70)
    truth = [(box, "Liver")]
    cases = [
        (boxes([(box, "liver")]), truth, 1, 1),
        (boxes([(half, "liver")]), truth, 0.5, 1),  # IoU exactly at the threshold counts
        (boxes([((10, 10, 19, 30), "liver")]), truth, 0.45, 0),
        (boxes([(box, "liver"), (box, "liver")]), truth, 0.5, 2 / 3),
        (boxes([(box, "liver"), (away, "liver")]), truth, 0.5, 2 / 3),
        (boxes([(box, "spleen")]), truth, 0, 0),
        (boxes([(box, "")]), truth, 1, 1),  # the question named it
        (boxes([(box, "")]), [(box, "liver"), (away, "spleen")], 0, 0),  # or it did not
        (boxes([(box, "anything")]), [(box, "")], 1, 1),
        (boxes([]), truth, 0, 0),
        (boxes([]), [], 1, 1),
        (boxes([(box, "liver")]), [], 0, 0),
        (None, truth, 0, 0),
        (None, [], 0, 0),
    ]
    scores = grounding_scores([pred for pred, *_ in cases], [boxes(list(t)) for _, t, *_ in cases])
    for index, (_, _, iou, f1) in enumerate(cases):
        assert (scores.iou[index], scores.f1[index]) == pytest.approx((iou, f1)), index


def test_labels_compare_without_case_marks_and_underscores() -> None:
    assert comparable_labels(["Left_Kidney", "the spleen."], ["left kidney", "Spleen"]) == (
        ["left kidney", "spleen"], ["left kidney", "spleen"],
    )  # fmt: skip


CHOICES = ("CT", "MR", "a microscope image", "B")


@pytest.mark.parametrize(
    ("kind", "truth", "right", "wrong"),
    [
        ("yesno", "yes", ["yes", "Yes.", "YES!", "Answer: yes", "yes, it is", "<think>no</think> yes"],
         ["", "no", "yes or no", "maybe", "it is there, yes", "yesterday", "<think>yes"]),
        ("yesno", "No", ["no", "No, there is none", "<answer>no</answer>"], ["none", "nope", "yes", "not"]),
        ("choice", "MR", ["MR", "mr.", "(b)", "B: MR", "B) mr", "The answer is MR", "Answer: (B)"],
         ["", "A", "A) MR", "CT", "CT or MR", "E", "MRI"]),
        ("choice", "C", ["C", "c.", "(C)", "A microscope image", "C: a microscope image"], ["A", "D", "microscope"]),
        ("open", "Left kidney", ["left kidney", "the left-kidney.", "Left  Kidney!", "It is the left kidney"],
         ["", "kidney", "right kidney", "left kidney and spleen"]),
        ("open", "cardiomegaly", ["Enlarged heart", "enlargement of the heart", "cardiac enlargement"],
         ["heart", "enlarged liver", "no cardiomegaly", "cardiomegaly and edema"]),
        ("open", "pulmonary oedema", ["pulmonary edema", "Edema of the lungs"], ["edema", "pleural edema"]),
        ("open", "haemorrhage", ["hemorrhage", "bleeding"], ["hematoma"]),
        ("open", "chest x-ray", ["chest radiograph", "Thorax plain film"], ["chest CT"]),
        ("open", "2 inches", ["5.08 cm", "2 inch", "50 mm"], ["2 cm", "80 mm"]),
        ("open", "12", ["12", "12.0", " 12. "], ["", "twelve", "13", "12.4", "1 2", "-12", "12 13"]),
        ("open", "12 mm", ["12 mm", "12mm", "1.2 cm", "12", "12.4 mm"], ["12 cm", "13 mm", "12 ml", "mm"]),
        ("open", "0.5", ["0.5", "0.50"], ["0.6", "5", "-0.5"]),
    ],
)  # fmt: skip
def test_answers(kind: str, truth: str, right: list[str], wrong: list[str]) -> None:
    answer = SimpleNamespace(type=kind, value=truth, choices=CHOICES if kind == "choice" else ())
    assert [text for text in right if not vqa_correct(text, answer)] == []  # type: ignore[arg-type]
    assert [text for text in wrong if vqa_correct(text, answer)] == []  # type: ignore[arg-type]


def test_a_choice_that_is_a_letter_itself_is_taken_by_its_text() -> None:
    answer = SimpleNamespace(type="choice", value="B", choices=CHOICES)
    assert vqa_correct("B", answer)  # type: ignore[arg-type]
    assert not vqa_correct("MR", answer)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (SimpleNamespace(type="boxes", value=None, choices=()), "type 'boxes', expected one of yesno, choice, open"),
        (SimpleNamespace(type="yesno", value="maybe", choices=()), "'maybe', expected yes or no"),
        (SimpleNamespace(type="choice", value="PET", choices=CHOICES), "'PET', which is neither one of"),
    ],
)
def test_answers_that_cannot_be_scored_are_named(answer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vqa_correct("yes", answer)


@given(st.integers(1, 6), st.integers(1, 6), st.data())
@settings(max_examples=50, deadline=None)
def test_ranks_equal_a_sort(queries: int, candidates: int, data: st.DataObject) -> None:
    scores = torch.tensor(data.draw(st.lists(
        st.lists(st.integers(0, 4), min_size=candidates, max_size=candidates), min_size=queries, max_size=queries
    )), dtype=torch.float32)  # fmt: skip
    truth = data.draw(st.lists(st.integers(0, candidates - 1), min_size=queries, max_size=queries))
    expected = []
    for row, column in zip(scores.tolist(), truth, strict=True):
        order = sorted(range(candidates), key=lambda j: (-row[j], j == column))  # noqa: B023 - used at once
        expected.append(order.index(column) + 1)
    assert retrieval_ranks(scores, truth) == expected


def test_retrieval_figures() -> None:
    inf, nan = math.inf, math.nan
    scores = torch.tensor([[3.0, 1.0, 2.0], [0.0, 1.0, -inf], [nan, 5.0, 1.0], [1.0, 1.0, 1.0]])
    found = retrieval_scores(scores, [0, 0, 0, 2])
    assert found.ranks == [1, 2, 3, 3]
    assert (found.recall_at_1, found.median_rank) == (0.25, 2.5)
    assert found.chance == pytest.approx((1 / 3 + 1 / 2 + 1 / 3 + 1 / 3) / 4)
    with pytest.raises(ValueError, match=r"scores \(4, 3\) for 2 queries"):
        retrieval_ranks(scores, [0, 1])
    with pytest.raises(ValueError, match="scores has 3"):
        retrieval_ranks(scores, [0, 1, 2, 3])
    with pytest.raises(ValueError, match="no queries"):
        retrieval_scores(scores[:0], [])


def test_a_right_candidate_that_was_not_offered_has_a_rank() -> None:
    assert retrieval_ranks(torch.tensor([[float("-inf")]]), [0]) == [1]
