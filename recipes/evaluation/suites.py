"""Suites of questions: the held-out embedded images, any data set of the catalogue, and data files."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from medmo_core.data.processor import Processor
from medmo_core.data.records.sample import Sample
from medmo_core.data.sources.open_source import open_source
from medmo_core.datasets.catalogue import find_data_set
from medmo_core.datasets.embedded.tasks import absent_samples, eval_samples
from medmo_core.errors import InputError
from medmo_core.inference.copies import Copies
from medmo_core.models.medmo import MedMO

from .ask import DEFAULT_ASKING, Asking, answer_limit, start_answers
from .baselines import FittedBaselines, embedded_baselines, fit_baselines
from .controls import shuffle_images
from .results import Evaluation
from .retrieval import distinct_captions, start_retrieval
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
    with asking.copies(model, processor, _num_questions(samples)) as copies:
        return _start(copies, samples, shuffled=shuffled, suffix=suffix, asking=asking)(baselines)


Finish = Callable[[FittedBaselines | None], Evaluation]
"""What waits for the answers to questions that were asked, and scores them beside baselines."""


def _start(
    copies: Copies,
    samples: Mapping[str, Sequence[Sample]],
    *,
    shuffled: Sequence[str],
    suffix: str,
    asking: Asking,
) -> Finish:
    """Start what `evaluate` does with its samples."""
    parts: list[Finish] = []
    for task, chosen in samples.items():
        if task == "retrieval":
            ranked = start_retrieval(copies, chosen, suffix=suffix, asking=asking)
            parts.append(lambda baselines, ranked=ranked: ranked())
            continue
        if task not in METRICS:
            raise InputError(f"task {task!r} has no metric here; these have: {', '.join([*METRICS, 'retrieval'])}")
        if not chosen:
            raise InputError(f"task {task!r}: no samples to score")
        parts.append(_start_task(copies, task, chosen, shuffled=task in shuffled, suffix=suffix, asking=asking))

    def finish(baselines: FittedBaselines | None) -> Evaluation:
        result = Evaluation()
        for part in parts:
            result.add(part(baselines))
        return result

    return finish


def _start_task(
    copies: Copies, task: str, chosen: Sequence[Sample], *, shuffled: bool, suffix: str, asking: Asking
) -> Finish:
    """Start to ask the questions of one task, and again with other images where they are to be shuffled."""
    # Truth, baseline and image are those of the sample itself, also where another image is shown.
    scored, questions = {task + suffix: list(chosen)}, {task + suffix: list(chosen)}
    present = [sample for sample in chosen if task != "grounding" or sample.sought]
    if shuffled and present:
        scored[f"{task}{suffix}_shuffled"] = present
        questions[f"{task}{suffix}_shuffled"] = shuffle_images(present, asking.seed)
    limit = asking.max_new_tokens or answer_limit(copies.processor, chosen)
    answers = start_answers(copies, questions, max_new_tokens=limit, batch_size=asking.batch_size)

    def finish(baselines: FittedBaselines | None) -> Evaluation:
        result = Evaluation(samples=questions)
        for key, texts in answers(asking.on_progress).items():
            predictions = score_answers(scored[key], texts, copies.processor.text, baselines)
            result.predictions[key] = predictions
            for metric in METRICS[task]:
                if any(metric in p.scores for p in predictions):
                    result.metrics[metric + key.removeprefix(task)] = mean_score(predictions, metric)
        return result

    return finish


def _num_questions(samples: Mapping[str, Sequence[Sample]]) -> int:
    return sum(len(chosen) ** (2 if task == "retrieval" else 1) for task, chosen in samples.items())


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
    sizes = num_samples, num_reports, 4 * num_captions
    suites = {crops: dict(_drawn(crops, split, sizes, asking.seed)) for crops in ("fixed", "none")}
    suites["fixed"]["retrieval"] = distinct_captions(processor.text, suites["fixed"]["retrieval"])[:num_captions]
    result = Evaluation()
    with asking.copies(model, processor, sum(map(_num_questions, suites.values()))) as copies:
        fixed = _start(copies, suites["fixed"], shuffled=("vqa", "grounding"), suffix="", asking=asking)
        whole = _start(copies, suites["none"], shuffled=(), suffix="_full", asking=asking)
        for crops, finish in (("fixed", fixed), ("none", whole)):
            result.add(finish(embedded_baselines(crops=crops)))  # fitted while the others answer
    return result


@lru_cache(maxsize=4)
def _drawn(crops: str, split: str, sizes: tuple[int, int, int], seed: int) -> Mapping[str, Sequence[Sample]]:
    """Return task -> embedded samples, the same for every model that is evaluated in a run.

    Args:
        crops: `fixed`, with reports and captions, or `none`.
        split: split of the embedded data.
        sizes: samples of vqa and of grounding each, of reports, and of captions.
        seed: number that names crops and questions.
    """
    num_samples, num_reports, num_captions = sizes
    counts = {"vqa": num_samples, "grounding": num_samples}
    if crops == "fixed":
        counts |= {"report": num_reports, "retrieval": num_captions}
    samples = {task: eval_samples(task, split, crops=crops, n=n, seed=seed) for task, n in counts.items()}
    if crops == "fixed":
        samples["grounding"] += absent_samples(split, n=round(ABSENT_SHARE * num_samples), seed=seed)
    return samples


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
