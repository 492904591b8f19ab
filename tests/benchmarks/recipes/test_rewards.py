"""The comparison of rewards: every way gives the scores it must, and one that does not has no figure."""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.recipes import rewards as b
from benchmarks.suite.comparison import measure
from benchmarks.suite.schema import Row

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def texts() -> b.Texts:
    """Return six completions of five boxes."""
    return b.make_texts(prompts=2, samples=3, boxes=5)


def rows(number: int) -> dict[str, Row]:
    """Measure one of the short comparisons; way -> row."""
    comparison = b.comparisons(CPU, short=True)[number]
    return {row.way: row for row in measure(replace(comparison, seconds=0.0), CPU)}


def near(found: Sequence[float | None], expected: Sequence[float | None]) -> bool:
    return np.allclose(np.array(found, dtype=float), np.array(expected, dtype=float), rtol=0, atol=b.TOLERANCE)


def test_completions_are_a_fair_mix() -> None:
    texts = b.make_texts(64, 8, 16)
    assert len(texts.completions) == len(texts.boxes) == len(texts.corners) == len(texts.labels) == 512
    assert {len(json.loads(text)) for text in texts.completions} == {16}
    scores = np.array(b.our_scores(texts), dtype=float)
    assert 0.3 < scores.mean() < 0.9
    assert scores.std() > 0.05


def test_all_ways_agree_on_odd_texts_too(texts: b.Texts) -> None:
    pytest.importorskip("pycocotools")
    for some in (texts, replace(texts, completions=["[]", "babble", *texts.completions[2:]])):
        assert near(b.numpy_scores(some), b.our_scores(some))
        assert near(b.numpy_medmo_scores(some), b.our_medmo_scores(some))
        assert near(b.coco_f1(some), b.our_f1(some))
        assert near(b.coco_f1(some, lean=True), b.our_f1(some))
    assert not near(b.our_scores(texts), b.our_f1(texts))


def test_the_true_boxes_score_one_and_others_less(texts: b.Texts) -> None:
    pytest.importorskip("pycocotools")
    truth = json.dumps([{"bbox_2d": row, "label": str(label)} for row, label in zip(
        texts.boxes[0].to("norm1000").xyxy.tolist(), texts.labels[0], strict=True)])  # fmt: skip
    perfect = replace(texts, completions=[truth, *texts.completions[1:]])
    for way in (b.coco_f1, b.numpy_scores, b.numpy_medmo_scores):
        assert way(perfect)[0] == pytest.approx(1.0)
        assert min(way(texts)) < 0.9


def test_every_way_is_timed() -> None:
    pytest.importorskip("pycocotools")
    for number, peers in enumerate(({"NumPy and SciPy"}, {"NumPy and SciPy", "COCOeval", "COCOeval, one threshold"})):
        found = rows(number)
        assert found.keys() == {"ours", *peers}
        assert {row.status for row in found.values()} == {"timed"}


@pytest.mark.parametrize("off", [1e-6, float("nan")])
def test_scores_that_differ_have_no_figure(off: float, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = b.numpy_medmo_scores
    monkeypatch.setattr(b, "numpy_medmo_scores", lambda texts: [*honest(texts)[:-1], honest(texts)[-1] + off])
    found = rows(2)
    assert found["NumPy and SciPy"].status == "wrong" and "from our scores" in found["NumPy and SciPy"].reason
    assert found["ours"].status == "wrong" and "from NumPy and SciPy" in found["ours"].reason


def test_listing_makes_nothing_and_the_whole_names_what_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(b, "make_texts", pytest.fail)
    cases = [comparison.case for comparison in b.comparisons(CPU, short=False)]
    assert cases[0] == "512 completions of 16 boxes" and len(set(cases)) == len(cases) == 3
    assert [c.case for c in b.comparisons(CPU, short=True)] != cases


def test_a_call_runs_on_one_core_and_leaves_the_threads_as_they_were() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert b.on_one_core(torch.get_num_threads)() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
