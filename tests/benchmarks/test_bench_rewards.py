"""The benchmark of rewards compares ways that agree, refuses ways that do not, and tells when a ratio is missed."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import bench_rewards as b


@pytest.fixture(scope="module")
def work() -> b.Work:
    return b.make_work(prompts=2, samples=3, boxes=5)


def test_completions_are_a_fair_mix(work: b.Work) -> None:
    assert len(work.completions) == len(work.boxes) == len(work.corners) == len(work.labels) == 6
    assert {len(json.loads(text)) for text in work.completions} == {5}
    scores = np.array(b.our_scores(b.make_work()), dtype=float)
    assert 0.3 < scores.mean() < 0.9
    assert scores.std() > 0.05


def test_all_ways_agree(work: b.Work) -> None:
    pytest.importorskip("pycocotools")
    odd = replace(work, completions=["[]", "babble", *work.completions[2:]])
    for some in (work, odd):
        b.check("numpy", b.numpy_scores(some), b.our_scores(some))
        b.check("coco", b.coco_scores(some, lean=True), b.our_scores(some, "f1"))
    assert len(b.coco_scores(work, every=4)) == 2


def test_the_average_precision_is_that_of_the_boxes(work: b.Work) -> None:
    pytest.importorskip("pycocotools")
    truth = json.dumps([{"bbox_2d": row, "label": str(label)} for row, label in zip(
        work.boxes[0].to("norm1000").xyxy.tolist(), work.labels[0], strict=True)])  # fmt: skip
    perfect = replace(work, completions=[truth, *work.completions[1:]])
    assert b.coco_scores(perfect)[0] == pytest.approx(1.0)
    assert min(b.coco_scores(work)) < 0.9


def test_ways_that_differ_are_refused(work: b.Work) -> None:
    scores = b.our_scores(work)
    with pytest.raises(ValueError, match="other: scores differ by"):
        b.check("other", [1e-6 + (score or 0) for score in scores], scores)
    with pytest.raises(ValueError, match="differ by nan"):
        b.check("other", [*scores[:5], float("nan")], scores)


@pytest.mark.parametrize(("ratio", "status"), [(3.0, 0), (2.4, 1)])
def test_a_missed_ratio_is_told(
    ratio: float, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"NumPy and SciPy": ratio, "COCOeval": 150.0, "lean COCOeval": 1.0}
    monkeypatch.setattr(b, "compare", lambda work, repeats: found)
    monkeypatch.setattr(b, "make_work", lambda: None)
    assert b.main([]) == status
    assert ("MISSED: 2.4 times faster than NumPy and SciPy" in capsys.readouterr().out) == bool(status)


def test_a_run_prints_every_way(work: b.Work, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pycocotools")
    ratios = b.compare(work, 3)
    assert ratios.keys() == {"NumPy and SciPy", "COCOeval", "lean COCOeval"}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("6 completions") and len(lines) == 5
