"""The gallery's rule: best, middle and worst third of the answers, none twice, whatever the model."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmo_core.data.records.sample import Answer, BoxAnnotation, ImageRef, Sample
from medmo_recipes.evaluation.results import Evaluation
from medmo_recipes.evaluation.scores import Prediction
from medmo_recipes.pages.gallery import EACH, ranked_pictures


def evaluation(root: Path, ious: list[float | None]) -> Evaluation:
    """Questions with these IoUs; None asks for what is not there."""
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(root / "a.png")
    samples = [
        Sample(f"s{i:02}", "grounding", (ImageRef("a.png", 30, 20),), answer=Answer("boxes"), root=root,
               boxes=() if iou is None else (BoxAnnotation("liver", (1, 2, 9, 9)),))
        for i, iou in enumerate(ious)
    ]  # fmt: skip
    predictions = [
        Prediction(s.id, "grounding", f"Where is {s.id}?", "[]", "", {"grounding_invented": 0.0} if iou is None else
                   {"grounding_iou": iou})
        for s, iou in zip(samples, ious, strict=True)
    ]  # fmt: skip
    return Evaluation({}, {"grounding": predictions}, {"grounding": samples})


def test_best_middle_and_worst_third_are_shown_and_labelled(tmp_path: Path) -> None:
    ious = [(7 * i % 30) / 30 for i in range(30)]
    shown = ranked_pictures(evaluation(tmp_path, [*ious, None]))
    groups = [picture.group.split(" (")[0] for picture in shown]
    assert groups == ["best"] * EACH + ["middle"] * EACH + ["worst third"] * EACH
    found = [float(picture.caption.removeprefix("IoU ")) for picture in shown]
    assert found == sorted(found, reverse=True) and found[0] == 0.97 and found[-1] == 0.0
    assert found[EACH : 2 * EACH] == pytest.approx([0.53, 0.5, 0.47]) and found[2 * EACH] < 1 / 3
    assert shown[0].question.startswith("Where is s") and shown[0].answer == "[]"


@pytest.mark.parametrize("count", range(12))
def test_of_few_answers_none_is_shown_twice(tmp_path: Path, count: int) -> None:
    shown = ranked_pictures(evaluation(tmp_path, [0.5] * count))
    assert len({picture.question for picture in shown}) == len(shown) == min(count, 3 * EACH)
