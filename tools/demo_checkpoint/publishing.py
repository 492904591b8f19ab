"""A finished run becomes the package's checkpoint: stored small, asked, scored as it is stored, and described."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.suite.machine import describe
from medmo_core.datasets.embedded.facts import EMBEDDED_ROOT, ImageFacts
from medmo_core.datasets.embedded.tasks import SOURCE_WEIGHTS, records_of
from medmo_core.demo.checkpoint import CARD, DEMO_NAME, FIRST_IMAGE, FIRST_QUESTION, HELD_OUT, WEIGHTS
from medmo_core.durable import replacing_folder, write_json, write_text
from medmo_core.errors import InputError
from medmo_core.inference import Kit, Reply, ask, load
from medmo_core.inference.copies import num_useful
from medmo_recipes.commands.official_export import export
from medmo_recipes.configs import CONFIGS
from medmo_recipes.evaluation.ask import Asking
from medmo_recipes.evaluation.provenance import provenance_of
from medmo_recipes.evaluation.results import NOTICE, Evaluation, paired_gain
from medmo_recipes.evaluation.suites import evaluate_embedded
from medmo_recipes.settings.run_config import STAGES, RunConfig

from .card import card_of

FINAL = Path("reinforce/final")
"""Weights of the last stage within a run's folder."""
DTYPE = "bfloat16"
MAX_BYTES = 10_000_000
MAX_ROUNDING = 0.02
"""How far a score may move, up or down, when the weights are rounded."""
ROUNDED = {"grounding_iou": "grounding", "vqa_accuracy": "vqa"}
"""Metric that is compared before and after rounding -> its questions."""


@dataclass(frozen=True)
class Counts:
    """Sizes of the evaluation; the defaults are those of `medmo evaluate`, which then repeats the card's figures.

    Attributes:
        num_samples: questions of vqa and of grounding each.
        num_reports: number of images to report on.
        num_captions: size of the retrieval pool.
    """

    num_samples: int = 200
    num_reports: int = 30
    num_captions: int = 20


DEFAULT_COUNTS = Counts()


def publish(run: Path, files: Path, *, command: str, counts: Counts = DEFAULT_COUNTS) -> None:
    """Write checkpoint, figures and card; what stood there is replaced at the very end.

    Args:
        run: folder of the three stages.
        files: folder to write.
        command: command line that made the run.
        counts: sizes of the evaluation.

    Raises:
        InputError: the checkpoint is too large, gives no box to the first question, or scores otherwise when rounded.
    """
    configs = {stage: read_config(run / stage) for stage in STAGES}
    trained = evaluated(load(run / FINAL, device="cpu"), counts)
    with replacing_folder(files) as partial:
        folder = export(run / FINAL, partial / WEIGHTS, dtype=DTYPE)
        kit = load(folder, device="cpu")
        first = first_answer(kit)
        stored = evaluated(kit, counts)
        provenance = provenance_of(
            stored, checkpoint=DEMO_NAME, folder=folder, data="embedded images", files=(), split="test", asking=Asking()
        )
        split = configs["instruct"].data.split
        values = {
            "model": DEMO_NAME,
            "notice": NOTICE,
            "command": command,
            "num_parameters": sum(p.numel() for p in kit.model.parameters()),
            "num_bytes": sum(path.stat().st_size for path in folder.iterdir()),
            "dtype": DTYPE,
            "stages": {name: stage_figures(config) for name, config in configs.items()},
            "num_training_images": len(images_of(split)),
            "data": data_rows(split),
            "first_answer": {"image": FIRST_IMAGE, "question": FIRST_QUESTION, **first.to_json()},
            "metrics": stored.to_json(),
            "rounding": rounding(trained, stored),
            "provenance": provenance,
            "machine": machine(),
        }
        refuse_unfit(values)
        write_json(partial / HELD_OUT, values, indent=1)
        write_card(partial)


def write_card(files: Path) -> Path:
    """Write the card from the figures in its folder; returns the card."""
    write_text(files / CARD, card_of(json.loads((files / HELD_OUT).read_text(encoding="utf-8"))))
    return files / CARD


def read_config(stage: Path) -> RunConfig:
    """Read the settings that a stage ran with."""
    return RunConfig.from_dict(json.loads((stage / "config.json").read_text(encoding="utf-8")))


def evaluated(kit: Kit, counts: Counts) -> Evaluation:
    """Score a checkpoint on the held-out embedded images as `medmo evaluate` does."""
    asking = Asking(num_processes=num_useful(kit.model))
    return evaluate_embedded(kit.model, kit.processor, asking=asking, **vars(counts))


def first_answer(kit: Kit) -> Reply:
    """Ask what README asks first."""
    return ask(kit, EMBEDDED_ROOT / FIRST_IMAGE, FIRST_QUESTION)


def refuse_other_runs(run: Path, seed: int) -> None:
    """Refuse a finished run whose steps or seed are not those that the card would state.

    Raises:
        InputError: naming the stage and the setting.
    """
    for stage in STAGES:
        found, expected = read_config(run / stage).train, CONFIGS[f"demo_{stage}"]().train
        for name, value, wanted in (("steps", found.steps, expected.steps), ("seed", found.seed, seed)):
            if value != wanted:
                raise InputError(f"{run / stage}: trained with {name}={value}, expected {wanted}; name another --out")


def stage_figures(config: RunConfig) -> dict[str, Any]:
    """Return what the card says of a stage."""
    return {"steps": config.train.steps, "samples_per_step": config.train.docs_per_step, "seed": config.train.seed}


def images_of(split: str) -> list[ImageFacts]:
    """Return the images of a split that the embedded tasks draw from."""
    return [record for record in records_of(split) if record.source in SOURCE_WEIGHTS]


def data_rows(split: str) -> list[dict[str, Any]]:
    """Return source packages of the embedded set: file, licences, images trained on and images held out.

    Args:
        split: split that was trained on.
    """
    manifest = json.loads((EMBEDDED_ROOT / "manifest.json").read_text(encoding="utf-8"))
    trained, held_out = (Counter(r.package for r in images_of(name)) for name in (split, "test"))
    every = [*images_of(split), *images_of("test")]
    return [
        {
            "package": name,
            "file": source["file"],
            "licences": sorted({r.licence for r in every if r.package == name}),
            "num_training_images": trained[name],
            "num_held_out_images": held_out[name],
        }
        for name, source in manifest["sources"].items()
    ]


def rounding(trained: Evaluation, stored: Evaluation) -> dict[str, Any]:
    """Return metric -> its change when the weights are rounded, and the share of answers that stay the same."""
    changes: dict[str, Any] = {}
    for metric, task in ROUNDED.items():
        difference, low, high = paired_gain(stored.predictions[task], trained.predictions[task], metric)
        changes[metric] = {"difference": difference, "low": low, "high": high}
    pairs = [
        (old.text, new.text)
        for task in ROUNDED.values()
        for old, new in zip(trained.predictions[task], stored.predictions[task], strict=True)
    ]
    return {"changes": changes, "same_answers": sum(old == new for old, new in pairs) / len(pairs)}


def machine() -> dict[str, Any]:
    """Describe where the figures were measured."""
    found = describe(torch.device("cpu"))
    return {"cpu": found.device, "cores": found.cores, "commit": found.commit, "changed": found.changed}


def refuse_unfit(values: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that README could not use.

    Raises:
        InputError: it is too large, its first answer holds no box, or its scores move when it is rounded.
    """
    if values["num_bytes"] > MAX_BYTES:
        raise InputError(f"the checkpoint has {values['num_bytes']:,} bytes, expected {MAX_BYTES:,} at most")
    first = values["first_answer"]
    if not first["boxes"]:
        raise InputError(
            f"the checkpoint answers {first['question']!r} about {first['image']} without a box ({first['text']!r}); "
            "train it longer, or with another --seed"
        )
    for metric, change in values["rounding"]["changes"].items():
        if abs(change["difference"]) > MAX_ROUNDING:
            raise InputError(
                f"{metric} changes by {change['difference']:+.3f} when the weights are rounded to {values['dtype']}, "
                f"expected {MAX_ROUNDING} at most; store another type"
            )
