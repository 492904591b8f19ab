"""Scores of several boxes, and what the rewards pay for answers with one fault."""

import pytest

from benchmarks.studies.box_rewards.judged import judge
from benchmarks.studies.box_rewards.target_scores import num_duplicates
from medmo_core.datasets.embedded.targets import target_samples
from medmo_core.profile import QWEN3_VL

A, NEAR_A, B, AWAY = [0, 0, 10, 10], [0, 0, 10, 8], [20, 0, 30, 10], [50, 50, 60, 60]
NUCLEI = ["nucleus"] * 4


@pytest.mark.parametrize(
    ("said", "labels", "duplicates"),
    [
        ([], [], 0),
        ([A, B], NUCLEI[:2], 0),
        ([A, A, B], NUCLEI[:3], 1),
        ([A, NEAR_A, NEAR_A], NUCLEI[:3], 2),
        ([AWAY, AWAY], NUCLEI[:2], 1),  # twice the same, though nothing is there
        ([[0, 0, 10, 5], [0, 5, 10, 10]], NUCLEI[:2], 1),  # the same target by halves that do not overlap
        ([A, A], ["nucleus", "rib"], 0),  # another label is another thing
        ([A, A], ["", ""], 1),  # without a label, the questioned one's
    ],
)
def test_a_box_counts_as_said_twice(said: list[list[float]], labels: list[str], duplicates: int) -> None:
    assert num_duplicates(said, labels, [A, B], NUCLEI[:2]) == duplicates


def test_boxes_where_nothing_is_are_duplicates_of_one_another_only() -> None:
    assert num_duplicates([A, A, B], NUCLEI[:3], [], []) == 1


def test_the_box_reward_tells_faults_apart_that_the_published_formula_does_not() -> None:
    samples = [*target_samples("train", 30, form="find_all"), *target_samples("train", 12, form="find_none")]
    paid = judge(samples, QWEN3_VL)
    box, medmo = ({answer: row[name] for answer, row in paid.items()} for name in ("box", "medmo_box"))
    assert box["as it is"] > 0.95 and medmo["as it is"] > 0.95
    for fault in ("each box twice", "3 boxes more, anywhere"):
        assert box[fault] < box["as it is"] - 0.3, fault
        assert medmo[fault] == pytest.approx(medmo["as it is"], abs=0.01), fault
    assert box["moved by one and a half sides"] < 0.1 < 0.4 < medmo["moved by one and a half sides"]
    assert box["nothing, where nothing is"] == 1 and medmo["nothing, where nothing is"] == 0
