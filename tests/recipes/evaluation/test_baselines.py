"""Baselines answer every question whose task training has seen, and so leave nothing to a model that does not look."""

import json
from pathlib import Path
from typing import Any

import pytest

from medmo_core.data.records.sample import Sample
from medmo_core.data.sources.jsonl import load_jsonl
from medmo_recipes.evaluation.baselines import FittedBaselines, fit_baselines
from medmo_recipes.evaluation.scores import score_texts


def samples(folder: Path, *lines: dict[str, Any]) -> list[Sample]:
    """Return the samples of lines of a data file; the picture itself is never opened."""
    common = {"images": [{"path": "a.png", "width": 100, "height": 100}]}
    texts = [json.dumps({"id": f"s{number}", **common, **line}) for number, line in enumerate(lines)]
    path = folder / "own.jsonl"
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return list(load_jsonl(path))


def ask(question: str, kind: str, value: str, **answer: Any) -> dict[str, Any]:
    return {
        "task": "vqa",
        "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}],
        "answer": {"type": kind, "value": value, **answer},
    }


@pytest.fixture
def fitted(tmp_path: Path) -> FittedBaselines:
    pairs = [("liver", "CT"), ("spleen", "MR"), ("heart", "XR")]
    yes = [ask(f"Is the {name} there?", "yesno", "yes") for name, _ in pairs]
    choices = [ask(f"What is {n}?", "choice", n, choices=["none", n, "other"]) for n, _ in pairs]
    opened = [ask("How many?", "open", "two"), ask("Which side?", "open", "left"), ask("Where?", "open", "left")]
    return fit_baselines(samples(tmp_path, *yes, ask("Is the lung there?", "yesno", "no"), *choices, *opened))


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (ask("Is the lung there?", "yesno", "yes"), "no"),  # seen: its own commonest answer
        (ask("Is the brain there?", "yesno", "no"), "yes"),  # its type's
        (ask("Which organ?", "open", "liver"), "left"),
        (ask("Which one?", "choice", "b", choices=["a", "b", "c"]), "B"),  # the letter: choices differ
    ],
)
def test_a_question_not_seen_gets_the_commonest_answer_of_its_type(
    question: dict[str, Any], said: str, fitted: FittedBaselines, tmp_path: Path
) -> None:
    assert fitted.answer(samples(tmp_path, question)[0]) == said


def test_a_type_not_seen_gets_the_commonest_of_the_task_and_a_task_not_seen_nothing(tmp_path: Path) -> None:
    fitted = fit_baselines(
        samples(tmp_path, ask("a?", "yesno", "yes"), ask("b?", "yesno", "yes"), ask("c?", "yesno", "no"))
    )
    assert fitted.answer(samples(tmp_path, ask("Which?", "open", "left"))[0]) == "yes"
    boxes = [{"label": "liver", "xyxy_px": [0, 0, 1, 1]}]
    (grounding,) = samples(
        tmp_path, {**ask("Where?", "boxes", ""), "task": "grounding", "answer": None, "boxes": boxes}
    )
    assert fitted.boxes(grounding) is None


def test_a_yes_machine_gains_nothing_over_the_baseline(tmp_path: Path) -> None:
    train = [
        ask(f"Is a {name} there?", "yesno", answer)
        for name, answer in zip("abcd", ("yes", "yes", "yes", "no"), strict=True)
    ]
    test = samples(
        tmp_path,
        *(ask(f"Is the {n} there?", "yesno", a) for n, a in zip("efgh", ("yes", "no", "no", "no"), strict=True)),
    )
    fitted = fit_baselines(samples(tmp_path, *train))
    said = [fitted.answer(sample) or "" for sample in test]
    baseline = score_texts(test, said, [None] * 4)
    machine = score_texts(test, ["yes"] * 4, [None] * 4)
    assert baseline == machine and sum(s["vqa_accuracy"] for s in baseline) == 1


def test_a_label_not_seen_gets_the_box_that_fits_all_best(tmp_path: Path) -> None:
    def place(label: str, *xyxy: int) -> dict[str, Any]:
        line = {**ask(f"Where is the {label}?", "boxes", ""), "task": "grounding"}
        return {**line, "answer": None, "boxes": [{"label": label, "xyxy_px": list(xyxy)}]}

    train = samples(
        tmp_path, place("liver", 10, 10, 50, 50), place("liver", 10, 10, 50, 50), place("heart", 60, 60, 90, 90)
    )
    fitted = fit_baselines(train)
    known, unknown = samples(tmp_path, place("heart", 0, 0, 5, 5), place("lung", 0, 0, 5, 5))
    for sample, expected in ((known, [60, 60, 90, 90]), (unknown, [10, 10, 50, 50])):
        boxes = fitted.boxes(sample)
        assert boxes is not None and boxes.xyxy.tolist() == [pytest.approx(expected)]
        assert boxes.labels == (sample.boxes[0].label,)
