"""Suites of questions: the held-out embedded images, any data set of the catalogue, and data files."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from medmo_core.data.processor import Processor
from medmo_core.data.records.sample import Sample
from medmo_core.data.sources.open_source import open_source
from medmo_core.datasets.catalogue import find_data_set
from medmo_core.datasets.embedded.tasks import absent_samples, eval_samples
from medmo_core.errors import InputError
from medmo_core.models.medmo import MedMO

from .ask import DEFAULT_ASKING, Asking, answer, answer_limit
from .baselines import FittedBaselines, embedded_baselines, fit_baselines
from .controls import shuffle_images
from .results import Evaluation
from .retrieval import distinct_captions, evaluate_retrieval
from .scores import METRICS, mean_score, score_answers

NUM_BASELINE_SAMPLES = 400
ABSENT_SHARE = 0.25
"""Questions for what a picture does not show, per question for what it shows: a fifth of all."""


def evaluate(
    model: MedMO,
    processor: Processor,
    samples: Mapping[str, Sequence[Sample]],
    *,
    baselines: FittedBaselines | None = None,
    shuffled: Sequence[str] = ("vqa", "grounding"),
    suffix: str = "",
    asking: Asking = DEFAULT_ASKING,
) -> Evaluation:
    """Score a model on samples by task; training mode and weights are left as they are.

    Args:
        model: the model.
        processor: processor of the model's checkpoint.
        samples: task (vqa, grounding, report, retrieval) -> samples with their truth; other tasks are refused.
        baselines: baselines fitted on training data, scored beside the model.
        shuffled: tasks whose questions are asked again with another sample's image; of grounding those about something
            that is there.
        suffix: ending of the names of metrics and predictions.
        asking: batch size, longest answer and seed.

    Raises:
        InputError: a task that has no metric, or a sample without the truth its task needs.
    """
    result = Evaluation()
    for task, chosen in samples.items():
        if task == "retrieval":
            result.add(evaluate_retrieval(model, processor, chosen, suffix=suffix, asking=asking))
            continue
        if task not in METRICS:
            raise InputError(f"task {task!r} has no metric here; these have: {', '.join([*METRICS, 'retrieval'])}")
        if not chosen:
            raise InputError(f"task {task!r}: no samples to score")
        # Truth, baseline and image are those of the sample itself, also where another image is shown.
        asked = {task + suffix: (list(chosen), list(chosen))}
        present = [sample for sample in chosen if task != "grounding" or sample.sought]
        if task in shuffled and present:
            asked[f"{task}{suffix}_shuffled"] = (present, shuffle_images(present, asking.seed))
        limit = asking.max_new_tokens or answer_limit(processor, chosen)
        for key, (scored, questions) in asked.items():
            texts = answer(
                model, processor, questions, batch_size=asking.batch_size, max_new_tokens=limit,
                on_progress=partial(_report_part, asking, key, len(questions)),
            )  # fmt: skip
            predictions = score_answers(scored, texts, processor.text, baselines)
            result.predictions[key], result.samples[key] = predictions, questions
            for metric in METRICS[task]:
                if any(metric in p.scores for p in predictions):
                    result.metrics[metric + key.removeprefix(task)] = mean_score(predictions, metric)
    return result


def _report_part(asking: Asking, key: str, total: int, done: int) -> None:
    asking.on_progress(key, done, total)


def evaluate_embedded(
    model: MedMO,
    processor: Processor,
    *,
    num_samples: int = 200,
    num_reports: int = 30,
    num_captions: int = 20,
    split: str = "test",
    asking: Asking = DEFAULT_ASKING,
) -> Evaluation:
    """Score a model on held-out embedded images: under fixed random crops with the control, and whole.

    Args:
        model: the model.
        processor: processor of the model's checkpoint.
        num_samples: questions of vqa and of grounding each.
        num_reports: images to report on.
        num_captions: size of the retrieval pool at most; one caption per distinct set of facts.
        split: split of the embedded data.
        asking: batch size, longest answer and seed, which also names the crops.
    """
    sizes = {"vqa": num_samples, "grounding": num_samples, "report": num_reports, "retrieval": 4 * num_captions}
    result = Evaluation()
    for crops, suffix in (("fixed", ""), ("none", "_full")):
        tasks = sizes if crops == "fixed" else {"vqa": num_samples, "grounding": num_samples}
        samples = {task: eval_samples(task, split, crops=crops, n=n, seed=asking.seed) for task, n in tasks.items()}
        if crops == "fixed":
            samples["grounding"] += absent_samples(split, n=round(ABSENT_SHARE * num_samples), seed=asking.seed)
        if "retrieval" in samples:
            samples["retrieval"] = distinct_captions(processor.text, samples["retrieval"])[:num_captions]
        part = evaluate(
            model,
            processor,
            samples,
            baselines=embedded_baselines(crops=crops),
            shuffled=("vqa", "grounding") if crops == "fixed" else (),
            suffix=suffix,
            asking=asking,
        )
        result.add(part)
    return result


def evaluate_data(
    model: MedMO,
    processor: Processor,
    name: str,
    *,
    root: Path | None = None,
    num_samples: int = 200,
    split: str = "test",
    asking: Asking = DEFAULT_ASKING,
) -> Evaluation:
    """Score a model on one split of a data set or of data files; baselines are fitted on the split "train", if any.

    Args:
        model: the model.
        processor: the processor of its checkpoint.
        name: name in the catalogue of data sets, or what `open_source` reads.
        root: folder that image paths of files are relative to; None: the first file's own.
        num_samples: samples of a data set of the catalogue; files are scored whole.
        split: split to score.
        asking: batch size, longest answer and seed.

    Raises:
        InputError: no such data, a fault in it, no sample of that split, or no task that can be scored.
    """
    data_set = find_data_set(name)
    if data_set is None:
        every = open_source(name, root).samples
        samples = [s for s in every if (s.split or "train") == split]
        training = [s for s in every if (s.split or "train") == "train"] if split != "train" else []
    else:
        every = samples = data_set.evaluation_samples(split, num_samples, asking.seed)
        training = data_set.evaluation_samples("train", NUM_BASELINE_SAMPLES, asking.seed)
    chosen: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.task in (*METRICS, "retrieval"):
            chosen.setdefault(sample.task, []).append(sample)
    if not chosen:
        found = ", ".join(sorted({f"{s.task} in {s.split or 'train'}" for s in every})) or "no sample at all"
        scored = ", ".join([*METRICS, "retrieval"])
        raise InputError(f"{name}: nothing to score in split {split!r} (tasks with a metric: {scored}); it has {found}")
    return evaluate(
        model,
        processor,
        chosen,
        baselines=fit_baselines(training) if training else None,
        asking=asking,
    )
