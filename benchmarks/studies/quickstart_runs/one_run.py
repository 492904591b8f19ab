"""One run of the study, in a separate process: the quickstart, then IoU on training images, into measured.json."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from medmo_core.datasets.embedded.tasks import eval_samples
from medmo_core.durable import write_json
from medmo_core.inference.load import load
from medmo_recipes.commands.three_stages import Layout, run
from medmo_recipes.evaluation.baselines import embedded_baselines
from medmo_recipes.evaluation.results import paired_gain
from medmo_recipes.evaluation.suites import evaluate
from medmo_recipes.pages.quickstart_page import METRIC_NAMES, Outcome, verdicts

from ...suite.machine import describe

MEASURED = "measured.json"
QUICKSTART = "quickstart"
"""Name of the quickstart's own folder within the run's."""
STAGES = ("instruct", "reinforce")
TASKS = {"grounding_iou": "grounding", "vqa_accuracy": "vqa"}
"""Metric whose change by reinforce is measured in pairs -> its questions."""
NUM_TRAINING_QUESTIONS = {"tiny": 200, "debug": 6}


def parse_layout(text: str) -> Layout:
    """Read processes and threads of each, as "2x1".

    Raises:
        ArgumentTypeError: it is not two whole numbers above 0 with an x between them.
    """
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected processes and threads of each, as 2x1")
    return Layout(int(found[1]), int(found[2]))


def checked_layout(text: str) -> str:
    """Return the text of a layout as it is.

    Raises:
        ArgumentTypeError: as `parse_layout`.
    """
    parse_layout(text)
    return text


def figures_of(outcome: Outcome) -> dict[str, Any]:
    """Return what the study keeps of a quickstart: scores, changes, verdicts and the costs of its parts."""
    before, after = (outcome.evaluations[stage] for stage in STAGES)
    changes = {}
    for metric, task in TASKS.items():
        difference, low, high = paired_gain(after.predictions[task], before.predictions[task], metric)
        changes[metric] = {"difference": difference, "low": low, "high": high}
    return {
        "stages": {
            stage: {name: score for name, score in outcome.evaluations[stage].to_json().items() if name in METRIC_NAMES}
            for stage in STAGES
        },
        "changes": changes,
        "verdicts": {verdict.claim: verdict.holds for verdict in verdicts(outcome)},
        "seconds": {part: round(value, 1) for part, value in outcome.seconds.items()},
        "cpu_seconds": {part: round(value, 1) for part, value in outcome.cpu_seconds.items()},
    }


def training_iou(checkpoint: Path, num_questions: int) -> dict[str, Any]:
    """Return a checkpoint's score in IoU of grounding questions about training images, asked as the held-out ones."""
    kit = load(checkpoint, device="cpu")
    samples = {"grounding": eval_samples("grounding", "train", n=num_questions)}
    result = evaluate(kit.model, kit.processor, samples, baselines=embedded_baselines(crops="fixed"), shuffled=())
    return result.metrics["grounding_iou"].to_json()


def machine() -> dict[str, Any]:
    """Describe processor and software, as far as results and times depend on them."""
    found = describe(torch.device("cpu"))
    return {
        "cpu": found.device,
        "cores": found.cores,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": found.versions["torch"],
        "commit": found.commit,
        "changed": found.changed,
        "date": found.date,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the quickstart, measure it and write measured.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="folder of the run")
    parser.add_argument("--size", choices=sorted(NUM_TRAINING_QUESTIONS), required=True, help="which configs")
    parser.add_argument("--seed", type=int, required=True, help="of weights, data and sampling")
    parser.add_argument("--layout", type=parse_layout, required=True, help="processes and threads of each, as 2x1")
    asked = parser.parse_args(argv)
    started_on = machine()  # before the run: a commit made meanwhile is not what ran
    outcome = run(asked.folder / QUICKSTART, size=asked.size, seed=asked.seed, layout=asked.layout)
    trained = training_iou(asked.folder / QUICKSTART / "instruct/final", NUM_TRAINING_QUESTIONS[asked.size])
    write_json(asked.folder / MEASURED, {**figures_of(outcome), "training_iou": trained, "machine": started_on})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
