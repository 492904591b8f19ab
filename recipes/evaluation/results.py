"""Results of an evaluation: scores with every answer behind them, as a table, as files, and compared in pairs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from medmo_core.data.records.sample import Sample
from medmo_core.durable import replacing, write_text
from medmo_core.errors import InputError
from medmo_core.metrics import paired_interval
from medmo_core.metrics.intervals import MIN_GROUPS
from medmo_core.notice import RESEARCH_ONLY

from .scores import Prediction, Score

NOTICE = f"{RESEARCH_ONLY} Intervals speak of these scans only."


@dataclass
class Evaluation:
    """Scores of one checkpoint, and every answer behind them.

    Attributes:
        metrics: name -> score; `_full` marks whole images, `_shuffled` the control.
        predictions: "task", "task_full" or "task_shuffled" -> answers, in the order of the samples.
        samples: key of `predictions` -> the samples whose answers they are; never written to a file.
    """

    metrics: dict[str, Score] = field(default_factory=dict)
    predictions: dict[str, list[Prediction]] = field(default_factory=dict)
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def add(self, other: "Evaluation") -> None:
        """Take over the scores and answers of a part."""
        self.metrics |= other.metrics
        self.predictions |= other.predictions
        self.samples |= other.samples

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Return metric -> {value, low, high, n, num_images, num_scans, baseline, gain, gain_low, gain_high}."""
        return {name: score.to_json() for name, score in self.metrics.items()}


def paired_gain(
    after: Sequence[Prediction], before: Sequence[Prediction], metric: str
) -> tuple[float, float | None, float | None]:
    """Compare two checkpoints on the same samples, those that have the metric.

    Returns:
        Mean difference and the ends of its 95 % interval over images, None where they are too few.

    Raises:
        InputError: the predictions are not about the same samples in the same order.
    """
    after, before = ([p for p in predictions if metric in p.scores] for predictions in (after, before))
    if [p.sample_id for p in after] != [p.sample_id for p in before]:
        raise InputError("two evaluations can be paired only when both answered the same samples in the same order")
    values, others = ([p.scores[metric] for p in predictions] for predictions in (after, before))
    low, high = paired_interval(values, others, [p.image for p in after]) or (None, None)
    return (sum(values) - sum(others)) / len(values), low, high


def format_table(metrics: Mapping[str, Score]) -> str:
    """Write scores as a table for people."""
    rows = [("metric", "value", "95 % interval", "baseline", "gain over it", "answers", "images", "scans")]
    for name, s in metrics.items():
        baseline = "" if s.baseline is None else f"{s.baseline:.3f}"
        gain = "" if s.gain is None else f"{s.gain:+.3f} {interval(s.gain_low, s.gain_high, '+.3f')}"
        counts = (str(s.n), str(s.num_images), str(s.num_scans))
        rows.append((name, f"{s.value:.3f}", interval(s.low, s.high), baseline, gain, *counts))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def counted(number: int, name: str) -> str:
    """Write a count with the name of what is counted: 1 scan, 2 scans."""
    return f"{number:,} {name}" if number == 1 else f"{number:,} {name}s"


def told(low: float | None, high: float | None, form: str = ".3f") -> str:
    """Write an interval in a sentence, or why there is none."""
    return interval(low, high, form) or f"(fewer than {MIN_GROUPS} images: no interval)"


def interval(low: float | None, high: float | None, form: str = ".3f") -> str:
    """Write an interval; nothing where there is none, as with few images."""
    return "" if low is None or high is None else f"[{low:{form}}, {high:{form}}]"


FILES = ("metrics.json", "predictions.jsonl", "report.html")
"""What an evaluation writes into its folder; the page is `pages/evaluation_page.py`'s."""


def refuse_overwriting(folder: Path, inputs: Iterable[Path] = (), *, overwrite: bool = False) -> None:
    """Make a folder for an evaluation, before any work, and try whether it may be written into.

    Args:
        folder: folder to write into.
        inputs: files that the evaluation reads.
        overwrite: whether an earlier evaluation may be replaced.

    Raises:
        InputError: it is a file, may not be written, holds something, or a file to write is one that is read.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder} is a file, expected a folder to write into")
    outputs = {(folder / name).resolve() for name in FILES}
    for path in inputs:
        if path.resolve() in outputs:
            raise InputError(f"--out {folder}: {path.name} in it is read as data and would be replaced; choose another")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"--out {folder} holds something already; name a new folder, or add --overwrite")
    try:  # what may be written is known for certain only once something was
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"--out {folder} cannot be written ({error.strerror}); choose another") from error


def write_evaluation(folder: Path, result: Evaluation, provenance: Mapping[str, Any]) -> None:
    """Write metrics.json and predictions.jsonl into a folder.

    Args:
        folder: folder to write into; created.
        result: what to write.
        provenance: what was scored and by what, in plain values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = {"metrics": result.to_json(), "provenance": provenance, "notice": NOTICE}
    write_text(folder / "metrics.json", json.dumps(values, indent=2) + "\n")
    with replacing(folder / "predictions.jsonl") as partial, partial.open("w", encoding="utf-8") as file:
        for key, predictions in result.predictions.items():
            for prediction in predictions:
                file.write(json.dumps({"set": key, **prediction.to_json()}, ensure_ascii=False) + "\n")
