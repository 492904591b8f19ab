"""Results of an evaluation: scores with every answer behind them, as a table, as files, and compared in pairs."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmo_core.durable import replacing, write_text
from medmo_core.errors import InputError
from medmo_core.metrics import paired_bootstrap
from medmo_core.notice import RESEARCH_ONLY

from .scores import Prediction, Score

NOTICE = f"{RESEARCH_ONLY} Intervals speak of these scans only."


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


def paired_gain(
    after: Sequence[Prediction], before: Sequence[Prediction], metric: str, *, seed: int = 0
) -> tuple[float, float, float]:
    """Compare two checkpoints on the same samples.

    Returns:
        Mean difference and its 95 % interval, resampled by image.

    Raises:
        InputError: the predictions are not about the same samples in the same order.
    """
    if [p.sample_id for p in after] != [p.sample_id for p in before]:
        raise InputError("two evaluations can be paired only when both answered the same samples in the same order")
    values, others = ([p.scores[metric] for p in predictions] for predictions in (after, before))
    low, high = paired_bootstrap(values, others, groups=[p.image for p in after], seed=seed)
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


def interval(low: float | None, high: float | None, form: str = ".3f") -> str:
    """Write an interval; nothing where there is none, as with a single image."""
    known = low is not None and high is not None and math.isfinite(low) and math.isfinite(high)
    return f"[{low:{form}}, {high:{form}}]" if known else ""


def write_evaluation(folder: Path, result: Evaluation) -> None:
    """Write metrics.json and predictions.jsonl into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {"metrics": result.to_json(), "notice": NOTICE}
    write_text(folder / "metrics.json", json.dumps(values, indent=2) + "\n")
    with replacing(folder / "predictions.jsonl") as partial, partial.open("w", encoding="utf-8") as file:
        for key, predictions in result.predictions.items():
            for prediction in predictions:
                file.write(json.dumps({"set": key, **prediction.to_json()}, ensure_ascii=False) + "\n")
