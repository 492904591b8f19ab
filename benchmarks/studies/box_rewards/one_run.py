"""One run of a round, trained and measured, and all of them several at a time."""

import json
import multiprocessing
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from medmo_core.durable import write_json
from medmo_core.inference.load import load
from medmo_recipes import reinforce
from medmo_recipes.reinforcement.sharpening import TEMPERATURES

from .asking import judged_questions, measure, metrics_of, training_questions
from .judged import judge
from .plan import START, StudyPlan, asks_for_one_box
from .ranking import agreement, ranking, sampled_groups


def run_all(plan: StudyPlan, init: Path, out: Path, jobs: int) -> dict[str, dict[str, Any]]:
    """Train and measure every arm with every seed, several at a time; "arm/seed" -> what `measure` returns."""
    tasks: list[tuple[str, int | None]] = [(START, None), *((arm, seed) for seed in plan.seeds for arm in plan.arms)]
    measured: dict[str, dict[str, Any]] = {}
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(run_one, plan, arm, seed, init, out): (arm, seed) for arm, seed in tasks}
        for number, future in enumerate(as_completed(futures), start=1):
            arm, seed = futures[future]
            name = arm if seed is None else f"{arm}/{seed}"
            measured[name] = future.result()
            means = {key: statistics.fmean(measured[name][key]) for key in metrics_of(plan.questions)}
            said = "  ".join(f"{key} {value:.3f}" for key, value in means.items())
            print(f"{number}/{len(tasks)} {name}: {said}", file=sys.stderr, flush=True)
    return measured


def run_one(plan: StudyPlan, arm: str, seed: int | None, init: Path, out: Path) -> dict[str, Any]:
    """Train one arm with one seed (None: the checkpoint as it is) and measure it; a stored result is returned as is."""
    torch.set_num_threads(1)
    folder = out / (START if seed is None else f"{arm.replace(' ', '_')}-{seed}")
    stored = folder / "measured.json"
    if stored.exists():
        return json.loads(stored.read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = init
    if seed is not None:
        config = plan.run_config(arm, seed, init, folder / "run").change(train={"resume": True})
        reinforce.run(config)
        checkpoint = folder / "run/final"
    kit = load(str(checkpoint), device="cpu")
    result = measure(kit, plan.questions, TEMPERATURES if seed is None else (1.0,))
    if seed is None:
        samples = training_questions(plan.questions)
        groups = sampled_groups(plan, kit, samples)
        result["agreement"] = agreement(plan, groups)
        if not asks_for_one_box(plan.to_json()):
            result["ranking"] = ranking(plan, kit, groups, samples)
            result["judged"] = judge(judged_questions(plan.questions), kit.profile)
    write_json(stored, result)
    return result
