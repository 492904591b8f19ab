"""Evaluation: what a perfect, a blind and a silent model score, and what is written."""

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from medmo_core.data.records.sample import Sample
from medmo_core.data.sources.jsonl import load_jsonl
from medmo_core.errors import InputError
from medmo_core.generation.decoding import Generation
from medmo_core.inference.copies import Copies
from medmo_core.inference.kit import Kit
from medmo_recipes.commands import evaluate as evaluate_command
from medmo_recipes.configs import CONFIGS
from medmo_recipes.evaluation import ask, results, retrieval, suites
from medmo_recipes.evaluation.ask import (
    Asking,
    answer,
    answer_limit,
    start_answers,
    start_caption_scores,
    with_answer,
)
from medmo_recipes.evaluation.baselines import fit_baselines
from medmo_recipes.evaluation.controls import shuffle_images
from medmo_recipes.evaluation.results import Evaluation, format_table, paired_gain, write_evaluation
from medmo_recipes.evaluation.retrieval import distinct_captions, evaluate_retrieval
from medmo_recipes.evaluation.scores import Prediction, image_key, mean_score, score_answers
from medmo_recipes.evaluation.suites import evaluate, evaluate_data, evaluate_embedded
from medmo_recipes.training.model.kit import load_kit


@pytest.fixture(scope="module")
def kit() -> Kit:
    return load_kit(CONFIGS["debug_instruct"](), "cpu")


@pytest.fixture
def samples(own_data: Path) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for sample in load_jsonl(own_data):
        found.setdefault(sample.task, []).append(sample)
    return found


def say(kit: Kit, monkeypatch: pytest.MonkeyPatch, told: dict[str, str]) -> None:
    """Let the model say what `told` says for a sample id, and nothing else."""

    def generate(batch: object, **_: object) -> list[list[Generation]]:
        texts = [told.get(name, "") for name in batch.sample_ids]  # type: ignore[attr-defined]
        return [[Generation(kit.tokenizer.encode(text), [], True)] for text in texts]

    monkeypatch.setattr(kit.model, "generate", generate)


def test_a_perfect_model_scores_one_and_a_silent_one_nothing(
    kit: Kit, samples: dict[str, list[Sample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {task: samples[task] for task in ("vqa", "grounding", "report")}
    truth = {s.id: kit.processor.text.target_text(s) for chosen in asked.values() for s in chosen}
    say(kit, monkeypatch, truth)
    perfect = evaluate(kit.model, kit.processor, asked, shuffled=())
    grounding = {"grounding_iou", "grounding_f1", "grounding_iou_said", "grounding_denied"}
    assert perfect.metrics.keys() == {"vqa_accuracy", *grounding, "report_fact_f1"}
    assert perfect.metrics.pop("grounding_denied").value == 0.0
    for name, score in perfect.metrics.items():
        assert score.value == pytest.approx(1.0, abs=0.02), name  # a coordinate is a thousandth of 64 px
        assert (score.n, score.num_images, score.num_scans, score.baseline) == (4, 4, 4, None)
    say(kit, monkeypatch, {})
    silent = evaluate(kit.model, kit.processor, asked, shuffled=())
    assert all(score.value == 0.0 for score in silent.metrics.values())
    four = [result.predictions["vqa"] for result in (perfect, silent)]
    assert paired_gain(*four, "vqa_accuracy") == (1.0, None, None), "too few images for an interval"
    eight = [[replace(p, image=f"{p.image}{i}") for i in range(2) for p in predictions] for predictions in four]
    assert paired_gain(*eight, "vqa_accuracy") == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="same samples in the same order"):
        paired_gain(perfect.predictions["vqa"], silent.predictions["vqa"][::-1], "vqa_accuracy")


def test_baselines_stand_beside_and_are_paired(
    kit: Kit, samples: dict[str, list[Sample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The constant box of the training pictures, on the test pictures: 8 of 24 px aside is an IoU of 16 / 32."""
    train = [s for chosen in samples.values() for s in chosen if s.split == "train"]
    test = [s for s in samples["grounding"] if s.id == "g0"]
    say(kit, monkeypatch, {"g0": kit.processor.text.target_text(test[0])})
    baselines = fit_baselines([s for s in train if s.id == "g1"])
    score = evaluate(kit.model, kit.processor, {"grounding": test}, baselines=baselines, shuffled=()).metrics[
        "grounding_iou"
    ]
    assert score.baseline == pytest.approx(0.5, abs=0.03)
    assert score.gain == pytest.approx(score.value - 0.5, abs=0.03)
    unknown = evaluate(kit.model, kit.processor, {"vqa": samples["vqa"]}, baselines=baselines, shuffled=()).metrics[
        "vqa_accuracy"
    ]
    assert unknown.baseline is None  # never met: no claim


def test_shuffled_images_change_the_image_alone(samples: dict[str, list[Sample]]) -> None:
    chosen = samples["grounding"]
    shuffled = shuffle_images(chosen, seed=3)
    assert shuffled == shuffle_images(chosen, seed=3)
    for before, after in zip(chosen, shuffled, strict=True):
        assert image_key(before, crop=False) != image_key(after, crop=False)
        assert (before.id, before.messages, before.boxes) == (after.id, after.messages, after.boxes)
    assert shuffle_images(chosen[:1]) == chosen[:1]  # nobody to swap with


def test_a_model_that_looks_falls_when_images_are_shuffled(
    kit: Kit, samples: dict[str, list[Sample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that answers from the picture it is shown: the control scores what the wrong picture's box scores."""
    by_image = {s.images[0].path: kit.processor.text.target_text(s) for s in samples["grounding"]}

    def look(model: object, processor: object, asked: list[Sample], limit: int) -> list[str]:
        return [by_image[s.images[0].path] for s in asked]

    monkeypatch.setattr(ask, "answer_batch", look)
    result = evaluate(kit.model, kit.processor, {"grounding": samples["grounding"]})
    assert result.metrics["grounding_iou"].value > 0.95
    assert result.metrics["grounding_iou_shuffled"].value < 0.6
    ids = [p.sample_id for p in result.predictions["grounding_shuffled"]]
    assert ids == [p.sample_id for p in result.predictions["grounding"]]


def test_an_answer_without_boxes_is_not_the_answer_no_boxes(kit: Kit, samples: dict[str, list[Sample]]) -> None:
    from dataclasses import replace

    empty = [replace(samples["grounding"][0], boxes=())]
    there = samples["grounding"][:1]
    boxes = kit.processor.text.target_text(there[0])
    for asked, said, expected in (
        (empty, "[]", {"grounding_invented": 0.0}),
        (empty, "I do not know.", {"grounding_invented": 0.0}),
        (empty, boxes, {"grounding_invented": 1.0}),
        (there, "[]", {"grounding_iou": 0.0, "grounding_f1": 0.0, "grounding_denied": 1.0}),
        (there, "I do not know.", {"grounding_iou": 0.0, "grounding_f1": 0.0, "grounding_denied": 0.0}),
    ):
        assert score_answers(asked, [said], kit.processor.text)[0].scores == expected, said
    right = score_answers(there, [boxes], kit.processor.text)[0].scores
    assert right["grounding_iou_said"] == right["grounding_iou"] > 0.9 and right["grounding_denied"] == 0.0
    with pytest.raises(ValueError, match="c0: a sample of task 'retrieval' cannot be scored as it is"):
        score_answers(samples["retrieval"][:1], ["text"], kit.processor.text)


def test_intervals_are_over_images() -> None:
    """Six images with ten equal answers each are six independent facts, not sixty; fewer than five have none."""

    def prediction(image: str, value: float) -> Prediction:
        return Prediction("id", "vqa", "", "", "", {"vqa_accuracy": value}, image=image, scan="scan")

    grouped = [prediction(image, value) for image, value in zip("abcdef", (1, 0) * 3, strict=True) for _ in range(10)]
    score = mean_score(grouped, "vqa_accuracy")
    assert score.low is not None and score.high is not None
    assert score.value == 0.5 and score.low < 0.15 and score.high > 0.85
    assert (score.n, score.num_images, score.num_scans) == (60, 6, 1)
    alone = mean_score([prediction("a", 1.0)], "vqa_accuracy")
    assert alone.low is None and alone.to_json()["low"] is None
    assert "nan" not in format_table({"vqa_accuracy": alone})


def test_caption_scores_are_the_mean_log_probability_of_the_caption(kit: Kit, samples: dict[str, list[Sample]]) -> None:
    chosen = samples["retrieval"]
    captions = [kit.processor.text.target_text(s) for s in chosen]
    heard: list[int] = []
    copies = Copies(kit.model, kit.processor)
    scores = start_caption_scores(copies, chosen, captions, batch_size=3)(heard.append)  # batches cross the rows
    assert heard == [3, 6, 9, 12, 15, 16]
    assert scores.shape == (4, 4)
    for row, column in ((0, 0), (2, 1), (3, 3)):
        item = kit.processor.encode(with_answer(chosen[row], captions[column]))
        batch = answer_batch(item)
        with torch.no_grad():
            assert scores[row, column].item() == pytest.approx(kit.model.token_logprobs(batch).mean().item(), abs=1e-4)


def answer_batch(item: object) -> object:
    from medmo_core.data.packing import pack

    return pack([item])  # type: ignore[list-item]


def test_retrieval_ranks_both_ways_beside_chance(
    kit: Kit, samples: dict[str, list[Sample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = samples["retrieval"]
    table = torch.eye(4, dtype=torch.float64)
    table[1] = torch.tensor([9.0, 1.0, 8.0, 7.0])  # image 1 prefers every other caption
    monkeypatch.setattr(retrieval, "start_caption_scores", lambda *_, **__: lambda on_progress: table)
    result = evaluate_retrieval(kit.model, kit.processor, [*chosen, chosen[0]])  # a second copy is no candidate
    metrics = result.metrics
    assert metrics["retrieval_recall1"].value == 0.75
    assert metrics["retrieval_recall1"].baseline == 0.25
    assert metrics["retrieval_median_rank"].value == 1.0
    assert metrics["retrieval_median_rank"].baseline == 2.5
    assert metrics["retrieval_image_recall1"].value == 0.25  # captions 0, 2, 3 are all drawn to image 1
    assert len(distinct_captions(kit.processor.text, [*chosen, *chosen])) == 4
    with pytest.raises(ValueError, match="at least two"):
        evaluate_retrieval(kit.model, kit.processor, chosen[:1])
    said = result.predictions["retrieval"]
    captions = [kit.processor.text.target_text(sample) for sample in chosen]
    assert [p.truth for p in said] == captions, "every image counts as an answer: the caption that came first"
    assert [p.text for p in said] == [captions[0], captions[0], captions[2], captions[3]]
    assert [p.scores["retrieval_recall1"] for p in said] == [1.0, 0.0, 1.0, 1.0]


def test_answers_do_not_depend_on_the_batch(kit: Kit, samples: dict[str, list[Sample]]) -> None:
    chosen = [*samples["vqa"], *samples["grounding"]]
    limit = min(12, answer_limit(kit.processor, chosen))
    one = answer(kit.model, kit.processor, chosen, max_new_tokens=limit, batch_size=1)
    assert one == answer(kit.model, kit.processor, chosen, max_new_tokens=limit, batch_size=8)


def test_questions_about_one_picture_share_a_batch_and_its_features(
    kit: Kit, samples: dict[str, list[Sample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers are those to each question alone; every picture passes the tower once."""
    chosen = [*samples["vqa"], *samples["grounding"]]
    parts = {"asked": chosen, "shuffled": shuffle_images(chosen, seed=1)}
    alone = {
        name: [answer(kit.model, kit.processor, [s], max_new_tokens=8)[0] for s in asked]
        for name, asked in parts.items()
    }
    tower, encoded, heard = kit.model.model.visual.forward, list[int](), list[tuple[str, int, int]]()

    def count(patches: Any, grids: dict[str, torch.Tensor]) -> Any:
        encoded.extend(map(len, grids.values()))
        return tower(patches, grids)

    monkeypatch.setattr(kit.model.model.visual, "forward", count)
    copies = Copies(kit.model, kit.processor)
    wait = start_answers(copies, parts, max_new_tokens=8, batch_size=16)
    assert wait(lambda *progress: heard.append(progress)) == alone
    assert encoded == [4], "16 questions about 4 pictures"
    assert heard == [("asked", 8, 8), ("shuffled", 8, 8)]


def test_two_processes_find_what_one_finds(
    kit: Kit, samples: dict[str, list[Sample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask, "WORTH_A_PROCESS", 1)
    asked = {task: samples[task] for task in ("vqa", "grounding", "report", "retrieval")}
    heard: dict[int, list[tuple[str, int, int]]] = {1: [], 2: []}

    def results(number: int) -> Evaluation:
        asking = Asking(3, 6, on_progress=lambda *told: heard[number].append(told), num_processes=number)
        return evaluate(kit.model, kit.processor, asked, asking=asking)

    assert results(2) == results(1)
    assert heard[2] == heard[1] and heard[1][-1] == ("retrieval", 16, 16)


@pytest.mark.parametrize("number", [1, 2])
def test_a_sample_that_cannot_be_used_is_named_whatever_process_meets_it(
    kit: Kit, samples: dict[str, list[Sample]], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(ask, "WORTH_A_PROCESS", 1)
    *good, last = samples["vqa"]
    broken = replace(last, images=(replace(last.images[0], path="gone.png"),))
    with pytest.raises(InputError, match=f"^{last.id}: .*gone.png"):
        evaluate(kit.model, kit.processor, {"vqa": [*good, broken]}, asking=Asking(2, 4, num_processes=number))


def test_few_questions_are_not_worth_a_process(kit: Kit) -> None:
    asking = Asking(num_processes=4)
    for questions, expected in ((1, 0), (300, 2), (10_000, 4)):
        with asking.copies(kit.model, kit.processor, questions) as copies:
            assert copies.number == max(expected, 1)


def test_own_file_is_scored_beside_its_own_training_split(kit: Kit, own_data: Path) -> None:
    result = evaluate_data(kit.model, kit.processor, str(own_data), split="test", asking=Asking(max_new_tokens=4))
    assert {"vqa_accuracy", "vqa_accuracy_shuffled", "grounding_iou", "retrieval_recall1"} <= result.metrics.keys()
    assert result.metrics["vqa_accuracy"].baseline == 1.0  # every answer is yes
    with pytest.raises(ValueError, match="nothing to score in split 'val'.*grounding in test"):
        evaluate_data(kit.model, kit.processor, str(own_data), split="val")


def test_what_is_written_names_no_patient(
    kit: Kit, samples: dict[str, list[Sample]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    say(kit, monkeypatch, {"q0": "yes"})
    result = evaluate(kit.model, kit.processor, {"vqa": samples["vqa"]})
    write_evaluation(tmp_path / "out", result, {"seed": 0})
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["metrics"]["vqa_accuracy"]["value"] == 0.25
    assert "research use only" in metrics["notice"].lower()
    lines = (tmp_path / "out" / "predictions.jsonl").read_text()
    assert len(lines.splitlines()) == 8
    assert json.loads(lines.splitlines()[0])["text"] == "yes"
    for scan in ("scan-0", "red.png"):
        assert scan not in lines + json.dumps(metrics)
    result.predictions["vqa"].append(cast(Prediction, None))  # an error in the middle of writing leaves the older file
    with pytest.raises(AttributeError):
        write_evaluation(tmp_path / "out", result, {"seed": 0})
    assert (tmp_path / "out" / "predictions.jsonl").read_text() == lines


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--batch-size", "0"], "batch_size is 0, expected 1 or more"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0, expected 1 or more"),
        (["--seed", "-1"], "seed is -1, expected 0 or more"),
        (["--num-samples", "0"], "--num-samples is 0, expected 1 or more"),
        (["--out", __file__], "is a file, expected a folder"),
        (["--out", str(Path(__file__).parent)], "holds something already; name a new folder, or add --overwrite"),
    ],
)
def test_bad_numbers_and_places_are_refused_before_any_work(words: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        evaluate_command.main(["--checkpoint", "nowhere", *words])


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot be written \(Not a directory\); choose another"):
        evaluate_command.main(["--checkpoint", "nowhere", "--out", str(tmp_path / "file" / "folder")])


def test_a_folder_that_takes_no_file_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(results, "TemporaryFile", refuse)
    with pytest.raises(ValueError, match=r"cannot be written \(No space left on device\); choose another"):
        evaluate_command.main(["--checkpoint", "nowhere", "--out", str(tmp_path)])


@pytest.mark.parametrize(("asked", "expected"), [("200", (200, 30, 20)), ("4", (4, 4, 4))])
def test_fewer_questions_are_fewer_reports_and_captions_too(
    asked: str, expected: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Asked(Exception):
        pass

    def stop(*_: object, **sizes: object) -> Evaluation:
        assert tuple(sizes[f"num_{name}"] for name in ("samples", "reports", "captions")) == expected
        raise Asked

    monkeypatch.setattr(suites, "evaluate_embedded", stop)
    with pytest.raises(Asked):
        evaluate_command.main(["--num-samples", asked, "--device", "cpu", "--out", str(tmp_path / "out")])


def test_unknown_task_is_refused(kit: Kit, samples: dict[str, list[Sample]]) -> None:
    with pytest.raises(ValueError, match="task 'caption' has no metric here"):
        evaluate(kit.model, kit.processor, {"caption": samples["vqa"]})


def test_embedded_evaluation_has_every_view(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole table on held-out embedded images; baselines fitted elsewhere are replaced, they take a while."""
    monkeypatch.setattr(suites, "embedded_baselines", lambda crops: fit_baselines([]))
    result = evaluate_embedded(
        kit.model, kit.processor, num_samples=4, num_reports=2, num_captions=3, asking=Asking(max_new_tokens=3)
    )
    assert isinstance(result, Evaluation)
    for suffix in ("", "_full", "_shuffled"):
        assert {f"vqa_accuracy{suffix}", f"grounding_iou{suffix}", f"grounding_f1{suffix}"} <= result.metrics.keys()
    assert {"report_fact_f1", "retrieval_recall1", "retrieval_image_median_rank"} <= result.metrics.keys()
    assert len(format_table(result.metrics).splitlines()) == len(result.metrics) + 1
