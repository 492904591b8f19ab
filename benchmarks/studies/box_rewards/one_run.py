"""One run of a round, trained and measured, and all of them several at a time."""

import json
import multiprocessing
import statistics
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from medmo_core.durable import write_json
from medmo_core.inference.kit import Kit
from medmo_core.inference.load import load
from medmo_recipes import reinforce
from medmo_recipes.reinforcement.advantages import combine, group_advantages
from medmo_recipes.reinforcement.engine import InPlaceEngine
from medmo_recipes.reinforcement.groups import reward_completions, sample_completions
from medmo_recipes.reinforcement.reward_calls.reward_set import RewardSet
from medmo_recipes.reinforcement.sharpening import TEMPERATURES
from medmo_recipes.settings.run_config import Rewards

from .asking import judged_questions, measure, metrics_of, training_questions
from .judged import judge
from .plan import START, StudyPlan, asks_for_one_box


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
        result["agreement"] = agreement(plan, kit)
        if not asks_for_one_box(plan.to_json()):
            result["judged"] = judge(judged_questions(plan.questions), kit.profile)
    write_json(stored, result)
    return result


def agreement(plan: StudyPlan, kit: Kit) -> dict[str, float]:
    """Say how similarly the first arm and each other one judge the same completions of training questions.

    Returns:
        Arm -> correlation of the advantages (1: the two teach the same).
    """
    config = plan.run_config(next(iter(plan.arms)), 0, Path(), Path())
    samples = training_questions(plan.questions)
    prompts = {number: kit.processor.encode(sample, for_generation=True) for number, sample in enumerate(samples)}
    answers = sample_completions(InPlaceEngine(kit.model), prompts, config.rollout, seed=0)
    every = {name: 1.0 for weights in plan.arms.values() for name in weights}
    rewards = RewardSet.from_config(Rewards(weights=every))
    groups = reward_completions(
        answers,
        rewards,
        every,
        kit.tokenizer,
        kit.processor.text,
        config.rollout,
        config.grpo,
        step=plan.steps,
        max_steps=plan.steps,
    )

    def advantages(weights: Mapping[str, float]) -> torch.Tensor:
        rewards_PG = torch.stack([combine(g.components, weights, normalise=False) for g in groups])
        return group_advantages(rewards_PG, config.grpo.advantage).flatten()

    own, *others = (advantages(weights) for weights in plan.arms.values())
    pairs = zip(list(plan.arms)[1:], others, strict=True)
    return {arm: float(own @ other / (own.norm() * other.norm()).clamp(min=1e-12)) for arm, other in pairs}
