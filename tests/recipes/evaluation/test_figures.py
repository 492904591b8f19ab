"""Figures of an evaluation where a small slip would hide: donors, groups, missing baselines, equal images."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medmo_core.data.records.sample import BoxAnnotation, ImageRef, Sample
from medmo_recipes.evaluation import retrieval
from medmo_recipes.evaluation.controls import shuffle_images
from medmo_recipes.evaluation.scores import Prediction, mean_score


def sample(name: str, path: str, size: tuple[int, int] = (100, 50), **more: Any) -> Sample:
    image = ImageRef(path=path, width=size[0], height=size[1])
    return Sample(id=name, task="grounding", images=(image,), messages=({"role": "user", "content": "?"},), **more)


@pytest.mark.parametrize("seed", range(6))
def test_a_donor_never_shows_the_same_picture(seed: int) -> None:
    samples = [sample("a", "one.png"), sample("b", "one.png"), sample("c", "two.png"), sample("d", "one.png")]
    for before, after in zip(samples, shuffle_images(samples, seed), strict=True):
        assert before.images[0].path != after.images[0].path


def test_a_box_given_in_the_question_keeps_its_place_relative_to_the_image() -> None:
    given = BoxAnnotation("liver", (10.0, 10.0, 50.0, 25.0))
    question: Any = {"role": "user", "content": [{"type": "boxes", "boxes": [0]}]}
    asking = replace(sample("a", "one.png", boxes=(given,)), messages=(question,))
    pair = [asking, sample("b", "two.png", (200, 200))]
    assert pair[0].sought == ()
    assert shuffle_images(pair)[0].boxes[0].xyxy_px == pytest.approx((20, 40, 100, 100))


def said(value: float, image: str, **baseline: float) -> Prediction:
    return Prediction("s", "vqa", "", "", "", {"vqa_accuracy": value}, baseline, image=image)


def test_a_question_without_a_baseline_counts_as_wrong_for_it() -> None:
    score = mean_score([said(1.0, "a", vqa_accuracy=1.0), said(1.0, "b")], "vqa_accuracy")
    assert (score.baseline, score.gain) == (0.5, 0.5)


def test_a_metric_that_no_baseline_has_stands_alone() -> None:
    answers = [replace(said(1.0, "a", vqa_accuracy=1.0), scores={"vqa_accuracy": 1.0, "grounding_denied": 0.0})]
    assert mean_score(answers, "grounding_denied").baseline is None
    assert mean_score(answers, "vqa_accuracy").baseline == 1.0


def test_the_gain_is_over_images_too() -> None:
    """Copies of an answer make its gain no surer."""
    once, copied = (
        mean_score([said(v, n, vqa_accuracy=0.0) for v, n in zip((1.0, 0.0) * 4, "abcdefgh", strict=True)
                    for _ in range(copies)], "vqa_accuracy")
        for copies in (1, 10)
    )  # fmt: skip
    assert once.gain_low is not None and once.gain_low < 0.1
    assert (once.gain_low, once.gain_high) == pytest.approx((copied.gain_low, copied.gain_high))


def test_one_image_stands_for_one_candidate_of_retrieval(own_data: Path) -> None:
    from medmo_core.data.sources.jsonl import load_jsonl

    first, second, *_ = (s for s in load_jsonl(own_data) if s.task == "retrieval")
    assert first.facts != second.facts
    same = replace(second, images=first.images)
    text: Any = None  # facts decide, so no text is written
    assert retrieval.distinct_captions(text, [first, same]) == [first]
    assert retrieval.distinct_captions(text, [first, second]) == [first, second]
