"""`medmo evaluate`: score a checkpoint on held-out images, beside what needs no looking.

    medmo evaluate --checkpoint runs/quickstart/reinforce/final
    medmo evaluate --checkpoint exported/ --data my.jsonl --split test --out results/
    medmo evaluate --checkpoint exported/ --data sample:pair

Greedy answers are scored as VQA accuracy, box IoU and F1 at 0.5, and report fact F1; captions are ranked for each image
(and images for each caption) by log-likelihood per token. Beside each stands its baseline, fitted on training data: the
commonest answer per kind of question, the best constant box per label, chance. Brackets are 95 % bootstrap intervals
over images, and so speak of these scans only. The embedded images are scored under fixed random crops (the bar) and
whole (`_full`), pairs of them (`sample:pair`) when asked for. In `_shuffled` each question comes with another image:
what is left there was not seen.

Writes metrics.json and predictions.jsonl; neither names a patient. Research use only.
"""

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from medmo_core.data.processor import Processor
from medmo_core.data.records.sample import Sample
from medmo_core.data.sources.mixture import JsonlSource
from medmo_core.datasets.embedded.pairs import eval_pairs
from medmo_core.datasets.embedded.tasks import eval_samples
from medmo_core.metrics import bootstrap_ci, paired_bootstrap, retrieval_ranks
from medmo_core.models.medmo import MedMO
from medmo_recipes.evaluation.baselines import embedded_baselines, fit_baselines

from ..evaluation.load_for_inference import load_for_inference
from ..evaluation.scores import (
    METRICS,
    Baselines,
    Prediction,
    Score,
    answer,
    answer_limit,
    caption_scores,
    image_key,
    score_answers,
    shuffle_images,
    summarise,
)

PAIRS = "sample:pair"
NUM_BASELINE_PAIRS = 400
NOTICE = "Research use only: not a medical device, not for diagnosis. Intervals speak of these scans only."


@dataclass
class Evaluation:
    """Scores of one checkpoint, and every answer behind them.

    Attributes:
        metrics: name -> score; `_full` marks whole images, `_shuffled` the control.
        predictions: "task", "task_full" or "task_shuffled" -> answers, in the order of the samples.
    """

    metrics: dict[str, Score] = field(default_factory=dict)
    predictions: dict[str, list[Prediction]] = field(default_factory=dict)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Return metric -> {value, low, high, n, num_images, num_scans, baseline, gain, gain_low, gain_high}."""
        return {name: score.to_json() for name, score in self.metrics.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate as the command line says; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    kit = load_for_inference(arguments.checkpoint, device=arguments.device, dtype=arguments.dtype)
    started = time.perf_counter()
    options = {"batch_size": arguments.batch_size, "max_new_tokens": arguments.max_new_tokens, "seed": arguments.seed}
    if arguments.data is None:
        result = evaluate_embedded(kit.model, kit.processor, num_samples=arguments.num_samples, **options)
        where = "embedded images"
    elif str(arguments.data) == PAIRS:
        result = evaluate_pairs(
            kit.model, kit.processor, num_samples=arguments.num_samples, split=arguments.split, **options
        )
        where = f"pairs of embedded images, split {arguments.split}"
    else:
        result = evaluate_file(
            kit.model, kit.processor, arguments.data, root=arguments.root, split=arguments.split, **options
        )
        where = f"{arguments.data}, split {arguments.split}"
    print(format_table(result.metrics))
    print(f"{where}: {sum(map(len, result.predictions.values()))} answers in {time.perf_counter() - started:.0f} s")
    print(NOTICE)
    write_evaluation(arguments.out, result)
    print(f"wrote {arguments.out / 'metrics.json'} and {arguments.out / 'predictions.jsonl'}")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        prog="medmo evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="official folder, a run's folder, or a hub id")
    parser.add_argument("--data", type=Path, help=f"JSONL file of your own, or {PAIRS} (default: the embedded images)")
    parser.add_argument("--root", type=Path, help="folder that image paths are relative to (default: the file's own)")
    parser.add_argument("--split", default="test", help="split of --data to score (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("evaluation"), help="folder to write (default: %(default)s)")
    parser.add_argument("--num-samples", type=int, default=200, help="questions per task (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="answers decoded together (default: %(default)s)")
    parser.add_argument(
        "--max-new-tokens", type=int, help="longest answer (default: half as long again as the longest true one)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of crops, shuffling and bootstrap (default: %(default)s)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on CUDA, else float32")
    return parser


def evaluate(
    model: MedMO,
    processor: Processor,
    samples: Mapping[str, Sequence[Sample]],
    *,
    baselines: Baselines | None = None,
    shuffled: Sequence[str] = ("vqa", "grounding"),
    suffix: str = "",
    batch_size: int = 64,
    max_new_tokens: int | None = None,
    seed: int = 0,
) -> Evaluation:
    """Score a model on samples by task; training mode and weights are left as they are.

    Args:
        model: the model.
        processor: of its checkpoint.
        samples: task (vqa, grounding, report, retrieval) -> samples with their truth; other tasks are refused.
        baselines: fitted on training data; scored beside the model.
        shuffled: tasks whose questions are asked again with another sample's image.
        suffix: added to the names of metrics and predictions.
        batch_size: answers decoded together.
        max_new_tokens: longest answer; None: half as long again as the longest true one.
        seed: of shuffling and bootstrap.

    Raises:
        ValueError: a task that has no metric, or a sample without the truth its task needs.
    """
    result = Evaluation()
    for task, chosen in samples.items():
        if task == "retrieval":
            result.metrics |= retrieval_metrics(
                model, processor, chosen, suffix=suffix, batch_size=batch_size, seed=seed
            )
            continue
        if task not in METRICS:
            raise ValueError(f"task {task!r} has no metric here; these have: {', '.join([*METRICS, 'retrieval'])}")
        if not chosen:
            raise ValueError(f"task {task!r}: no samples to score")
        asked = {task + suffix: list(chosen)}
        if task in shuffled:
            asked[f"{task}{suffix}_shuffled"] = shuffle_images(chosen, seed)
        limit = max_new_tokens or answer_limit(processor, chosen)
        for key, questions in asked.items():
            texts = answer(model, processor, questions, batch_size=batch_size, max_new_tokens=limit)
            # Truth, baseline and image of the sample itself, also where another image was shown.
            predictions = score_answers(chosen, texts, processor, baselines)
            result.predictions[key] = predictions
            for metric in METRICS[task]:
                result.metrics[metric + key.removeprefix(task)] = summarise(predictions, metric, seed=seed)
    return result


def evaluate_embedded(
    model: MedMO,
    processor: Processor,
    *,
    num_samples: int = 200,
    num_reports: int = 30,
    num_captions: int = 20,
    split: str = "test",
    batch_size: int = 64,
    max_new_tokens: int | None = None,
    seed: int = 0,
) -> Evaluation:
    """Score a model on held-out embedded images: under fixed random crops with the control, and whole.

    Args:
        model: the model.
        processor: of its checkpoint.
        num_samples: questions of vqa and of grounding each.
        num_reports: images to report on.
        num_captions: size of the retrieval pool at most; one caption per distinct set of facts.
        split: of the embedded data.
        batch_size: answers decoded together.
        max_new_tokens: longest answer.
        seed: names the crops and everything else that is drawn.
    """
    sizes = {"vqa": num_samples, "grounding": num_samples, "report": num_reports, "retrieval": 4 * num_captions}
    result = Evaluation()
    for crops, suffix in (("fixed", ""), ("none", "_full")):
        tasks = sizes if crops == "fixed" else {"vqa": num_samples, "grounding": num_samples}
        samples = {task: eval_samples(task, split, crops=crops, n=n, seed=seed) for task, n in tasks.items()}
        if "retrieval" in samples:
            samples["retrieval"] = distinct_captions(processor, samples["retrieval"])[:num_captions]
        part = evaluate(
            model,
            processor,
            samples,
            baselines=embedded_baselines(crops=crops),
            shuffled=("vqa", "grounding") if crops == "fixed" else (),
            suffix=suffix,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            seed=seed,
        )
        result.metrics |= part.metrics
        result.predictions |= part.predictions
    return result


def evaluate_pairs(
    model: MedMO,
    processor: Processor,
    *,
    num_samples: int = 200,
    split: str = "test",
    batch_size: int = 64,
    max_new_tokens: int | None = None,
    seed: int = 0,
) -> Evaluation:
    """Score a model on questions about two views of one embedded volume; arguments as for `evaluate_embedded`."""
    return evaluate(
        model,
        processor,
        {"grounding": eval_pairs(split, num_samples, seed)},
        baselines=fit_baselines(eval_pairs("train", NUM_BASELINE_PAIRS, seed)),
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )


def evaluate_file(
    model: MedMO,
    processor: Processor,
    path: Path,
    *,
    root: Path | None = None,
    split: str = "test",
    batch_size: int = 64,
    max_new_tokens: int | None = None,
    seed: int = 0,
) -> Evaluation:
    """Score a model on one split of a JSONL file; baselines are fitted on its split "train" where there is one.

    Raises:
        ValueError: the file has a fault, no sample of that split, or no task that can be scored.
    """
    root = path.parent if root is None else root
    source = JsonlSource(path, root)
    chosen: dict[str, list[Sample]] = {}
    for sample in source.samples:
        if (sample.split or "train") == split and sample.task in (*METRICS, "retrieval"):
            chosen.setdefault(sample.task, []).append(sample)
    if not chosen:
        found = ", ".join(sorted({f"{s.task} in {s.split or 'train'}" for s in source.samples})) or "no sample at all"
        scored = ", ".join([*METRICS, "retrieval"])
        raise ValueError(f"{path}: nothing to score in split {split!r} (tasks with a metric: {scored}); it has {found}")
    training = [s for s in source.samples if (s.split or "train") == "train"] if split != "train" else []
    return evaluate(
        model,
        processor,
        chosen,
        baselines=fit_baselines(training) if training else None,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )


def distinct_captions(processor: Processor, samples: Sequence[Sample]) -> list[Sample]:
    """Keep one sample per distinct caption and per image: a second right candidate would make every rank unfair."""
    kept: dict[str, Sample] = {}
    images: set[str] = set()
    for sample in samples:
        facts = str(sample.facts) if sample.facts else processor.target_text(sample)
        image = image_key(sample, crop=True)
        if facts not in kept and image not in images:
            kept[facts] = sample
            images.add(image)
    return list(kept.values())


def retrieval_metrics(
    model: MedMO,
    processor: Processor,
    samples: Sequence[Sample],
    *,
    suffix: str = "",
    batch_size: int = 64,
    seed: int = 0,
) -> dict[str, Score]:
    """Rank captions for each image and images for each caption.

    Args:
        model: the model.
        processor: of its checkpoint.
        samples: N pairs with distinct captions.
        suffix: added to the names.
        batch_size: documents per pass.
        seed: of the bootstrap.

    Returns:
        `retrieval_recall1` and `retrieval_median_rank` (a caption per image), `retrieval_image_recall1` and
        `retrieval_image_median_rank` (an image per caption); the baseline is chance.
    """
    samples = distinct_captions(processor, samples)
    if len(samples) < 2:
        raise ValueError(f"retrieval needs at least two samples with distinct facts, got {len(samples)}")
    captions = [processor.target_text(sample) for sample in samples]
    scores = caption_scores(model, processor, samples, captions, batch_size=batch_size)
    truth = list(range(len(samples)))
    metrics: dict[str, Score] = {}
    for name, table in (("retrieval", scores), ("retrieval_image", scores.T)):
        ranks = [int(rank) for rank in retrieval_ranks(table, truth)]
        for metric, score in _rank_scores(ranks, samples, seed).items():
            metrics[f"{name}_{metric}{suffix}"] = score
    return metrics


def _rank_scores(ranks: Sequence[int], samples: Sequence[Sample], seed: int) -> dict[str, Score]:
    """Summarise ranks (1 = first): recall@1 and median rank, each beside chance."""
    images = [image_key(sample, crop=False) for sample in samples]
    counts = {
        "n": len(ranks),
        "num_images": len(set(images)),
        "num_scans": len({sample.group or image for sample, image in zip(samples, images, strict=True)}),
    }
    hits = [float(rank == 1) for rank in ranks]
    low, high = bootstrap_ci(hits, groups=images, seed=seed)
    chance, value = 1.0 / len(ranks), sum(hits) / len(hits)
    gain = {"gain": value - chance, "gain_low": low - chance, "gain_high": high - chance}
    middle = float(median(ranks))
    return {
        "recall1": Score(value=value, low=low, high=high, baseline=chance, **gain, **counts),
        # A median over so few ranks has no interval worth printing.
        "median_rank": Score(value=middle, low=math.nan, high=math.nan, baseline=(len(ranks) + 1) / 2, **counts),
    }


def paired_gain(
    after: Sequence[Prediction], before: Sequence[Prediction], metric: str, *, seed: int = 0
) -> tuple[float, float, float]:
    """Compare two checkpoints on the same samples.

    Returns:
        Mean difference and its 95 % interval, resampled by image.

    Raises:
        ValueError: the predictions are not about the same samples in the same order.
    """
    if [p.sample_id for p in after] != [p.sample_id for p in before]:
        raise ValueError("two evaluations can be paired only when both answered the same samples in the same order")
    values, others = ([p.scores[metric] for p in predictions] for predictions in (after, before))
    low, high = paired_bootstrap(values, others, groups=[p.image for p in after], seed=seed)
    return (sum(values) - sum(others)) / len(values), low, high


def format_table(metrics: Mapping[str, Score]) -> str:
    """Write scores as a table for people."""
    rows = [("metric", "value", "95 % interval", "baseline", "gain over it", "answers", "images", "scans")]
    for name, s in metrics.items():
        baseline = "" if s.baseline is None else f"{s.baseline:.3f}"
        gain = "" if s.gain is None else f"{s.gain:+.3f} {_interval(s.gain_low, s.gain_high, '+.3f')}"
        counts = (str(s.n), str(s.num_images), str(s.num_scans))
        rows.append((name, f"{s.value:.3f}", _interval(s.low, s.high, ".3f"), baseline, gain, *counts))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _interval(low: float | None, high: float | None, form: str) -> str:
    """Write an interval; nothing where there is none."""
    known = low is not None and high is not None and math.isfinite(low) and math.isfinite(high)
    return f"[{low:{form}}, {high:{form}}]" if known else ""


def write_evaluation(folder: Path, result: Evaluation) -> None:
    """Write metrics.json and predictions.jsonl into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {"metrics": result.to_json(), "notice": NOTICE}
    (folder / "metrics.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    with (folder / "predictions.jsonl").open("w", encoding="utf-8") as file:
        for key, predictions in result.predictions.items():
            for prediction in predictions:
                file.write(json.dumps({"set": key, **prediction.to_json()}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
