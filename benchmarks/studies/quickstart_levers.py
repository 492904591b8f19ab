"""Study of the levers of the quickstart's recipe: instruct with one of them changed, on parts of the training scans.

    python -m benchmarks.studies.quickstart_levers --out runs/levers
    python -m benchmarks.studies.quickstart_levers --table runs/levers

Every variant starts from one align checkpoint and trains for `STEPS` steps on the split `fit`; variants are compared by
`val`, blocks of slices of the same scan, and `val_scans`, a CT under contrast agent and an MR scan that `fit` lacks.
The test scans are not looked at. One run a variant: less than one recipe differs from
seed to seed is no difference. A finished variant is not run again. Research use only.
"""

import argparse
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medmo_core.datasets.embedded.tasks import absent_samples, eval_samples
from medmo_core.durable import write_json, write_text
from medmo_core.errors import InputError, exit_status
from medmo_core.inference.load import load
from medmo_recipes.commands.three_stages import LAYOUTS, StageFailed, recipe_digest, stage_words
from medmo_recipes.configs import CONFIGS
from medmo_recipes.evaluation.ask import Asking
from medmo_recipes.evaluation.suites import evaluate
from medmo_recipes.training.distributed.torchrun import torchrun

from ..report.markdown import table
from ..report.page_section import markers, settle

ROOT = Path(__file__).resolve().parents[2]
TOOL = "benchmarks.studies.quickstart_levers"
FIGURES = ROOT / "benchmarks/results/cpu/quickstart_levers.json"
PAGE = ROOT / "docs/quickstart_levers.md"
FILE = "levers.json"
VARIANTS: dict[str, tuple[str, ...]] = {
    "as shipped": (),
    "attention not supervised": ("train.attention_weight=0",),
    "coordinates not spread": ("train.coordinate_spread=0",),
    "products in fp32": ("model.bfloat16_products=false",),
    "no tone curves": ("data.tones=0",),
    "AdamW at a rate that suits it": ("optim.kind=adamw", "optim.lr=1.5e-3"),
    "one grounding question a picture, as many pictures": (
        "data.sources.embedded:dialogue=0", "data.sources.embedded:grounding=8", "data.sources.embedded:caption=1",
    ),
    "half the pictures a step": ("train.docs_per_step=8", "train.micro_batch=4"),
    "two thirds of the rate": ("optim.lr=6e-3",),
}  # fmt: skip
"""Name -> settings that differ from `tiny_instruct`."""
STEPS = {"tiny": 200, "debug": 2}
"""Size -> steps of every variant that does not name its own, fewer than shipped."""
SPLITS = ("fit", "val", "val_scans")
NUM_QUESTIONS = {"tiny": 320, "debug": 8}
FIGURES_SHOWN = {"grounding_iou": "IoU", "grounding_denied": "denied", "grounding_invented": "invented"}
HEAD = f"""# Levers of the quickstart's recipe

Written by `python -m {TOOL} --table DIR`, which keeps what stands outside the markers. Research use only.

Each row is `tiny_instruct` with one thing changed, from one align checkpoint, trained on the split `fit` of the
embedded set and asked about `fit`, about `val` (16 slices, in two blocks, of the same CT scan that `fit` lacks) and
about `val_scans` (a CT scan under contrast agent and an MR scan). {STEPS["tiny"]} steps, fewer than shipped.
The recipe was chosen by such runs; the test scans were not looked at. One run a row: less than one recipe differs from
seed to seed is no difference. Seconds are the training's, on as many cores as it has processes.
"""


def run_variants(out: Path, size: str) -> dict[str, Any]:
    """Train and score the variants that a folder does not have yet; after each its results are written.

    Raises:
        InputError: the folder's results are of another size or recipe.
        StageFailed: a stage did not reach its end; the variants before it are kept.
    """
    study = read_study(out, size)
    results, align = study["variants"], out / "align"
    if not (align / "final").exists():
        train("align", size, align, ())
    for name, words in VARIANTS.items():
        if results.get(name, {}).get("settings") == list(words):
            print(f"{name}: finished before", flush=True)
            continue
        print(f"\n=== {name}", flush=True)
        folder, started = out / re.sub(r"\W+", "-", " ".join([name, *words]).lower()), time.perf_counter()
        shorter = (f"model.init={align / 'final'}", f"train.steps={STEPS[size]}", f"train.save_every={STEPS[size]}")
        train("instruct", size, folder, (*shorter, *words))
        seconds = time.perf_counter() - started
        results[name] = {"settings": list(words), "seconds": round(seconds, 1), **score(folder / "final", size)}
        write_json(out / FILE, study, indent=1)
    return results


def read_study(out: Path, size: str) -> dict[str, Any]:
    """Return what a folder holds, or the beginning of it.

    Raises:
        InputError: the file is broken, or holds results of another size or recipe.
    """
    own = {"size": size, "recipe": recipe_digest(size)}
    try:
        text = (out / FILE).read_text(encoding="utf-8") if (out / FILE).exists() else None
        study = {**own, "variants": {}} if text is None else json.loads(text)
    except ValueError as error:
        raise InputError(f"{out / FILE} is not valid JSON ({error}); name another folder") from None
    found = {name: study.get(name) for name in own} if isinstance(study, dict) else study
    if found != own or not isinstance(study.get("variants"), dict):
        raise InputError(f"{out / FILE} holds results of {found}, expected those of {own}; name another folder")
    return study


def train(stage: str, size: str, folder: Path, words: Sequence[str]) -> None:
    """Run a stage on the split `fit`; what an interrupted run left is continued.

    Raises:
        StageFailed: it did not reach its end.
    """
    config = CONFIGS[f"{size}_{stage}"]().change(train={"out_dir": str(folder)})
    own = [*stage_words(stage, size, config, LAYOUTS[size]), "data.split=fit", "train.resume=true", *words]
    status = torchrun(f"medmo_recipes.{stage}", own, num_processes=LAYOUTS[size].processes)
    if status:
        raise StageFailed(f"{stage} in {folder} ended with status {status}; its own message stands above")


def score(checkpoint: Path, size: str) -> dict[str, Any]:
    """Ask grounding questions about both parts of the training scans; a fifth is about what is absent."""
    kit, number = load(checkpoint, device="cpu"), NUM_QUESTIONS[size]
    scores: dict[str, Any] = {}
    for split in SPLITS:
        samples = eval_samples("grounding", split, n=number) + absent_samples(split, n=number // 4)
        asking = Asking(num_processes=LAYOUTS[size].cores)
        result = evaluate(kit.model, kit.processor, {"grounding": samples}, shuffled=(), asking=asking)
        scores[split] = {name: result.metrics[name].to_json() for name in FIGURES_SHOWN}
    return scores


def section(results: Mapping[str, Any]) -> str:
    """Return the table of results, a row per variant."""
    heads = ["variant", *(f"{word}, {split}" for split in SPLITS for word in FIGURES_SHOWN.values()), "s", "settings"]
    rows = []
    for name, found in results.items():
        figures = [f"{found[split][metric]['value']:.3f}" for split in SPLITS for metric in FIGURES_SHOWN]
        settings = " ".join(f"`{word}`" for word in found["settings"])
        rows.append([name, *figures, f"{found['seconds']:.0f}", settings or "none"])
    return table(heads, rows)


def publish(out: Path) -> None:
    """Write the committed results and their page from a folder that has every variant.

    Raises:
        InputError: it has not.
    """
    study = read_study(out, "tiny")
    results = study["variants"]
    missing = [name for name, words in VARIANTS.items() if results.get(name, {}).get("settings") != list(words)]
    if missing:
        raise InputError(f"--table {out}: no result of {', '.join(missing)}; run --out {out} first")
    write_json(FIGURES, study, indent=1)
    if not PAGE.exists():
        begin, end = markers(TOOL)
        write_text(PAGE, f"{HEAD}\n{begin}\n{end}\n")
    settle(PAGE, TOOL, section(results), write=True, fix=f"python -m {TOOL} --table")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the variants or publish their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="folder of the runs; those it has are not made again")
    what.add_argument("--table", type=Path, help="folder of finished runs to publish")
    parser.add_argument("--size", choices=sorted(NUM_QUESTIONS), default="tiny", help="which configs")
    asked = parser.parse_args(argv)

    def work() -> int:
        if asked.table is not None:
            publish(asked.table)
        else:
            asked.out.mkdir(parents=True, exist_ok=True)
            print(section(run_variants(asked.out, asked.size)))
        return 0

    return exit_status(work)


if __name__ == "__main__":
    raise SystemExit(main())
