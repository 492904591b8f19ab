"""Judgement of the rewards of a round on the completions of the checkpoint that its arms start from.

Shapes: N prompts, G completions of each.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from medmo_core.data.records.sample import Sample
from medmo_core.inference.kit import Kit
from medmo_recipes.evaluation.scores import Prediction, score_answers
from medmo_recipes.reinforcement.advantages import combine, group_advantages
from medmo_recipes.reinforcement.engine import InPlaceEngine
from medmo_recipes.reinforcement.groups import Group, reward_completions, sample_completions
from medmo_recipes.reinforcement.reward_calls.reward_set import RewardSet
from medmo_recipes.settings.run_config import Rewards, RunConfig

from .plan import StudyPlan
from .target_scores import num_duplicates

Measure = Callable[[Sample, Prediction], float]
MEASURES: dict[str, Measure] = {
    "f1": lambda sample, said: said.scores["grounding_f1"] if sample.boxes else float(not said.boxes_px),
    "duplicates": lambda sample, said: float(
        num_duplicates(said.boxes_px, said.box_labels, said.truth_px, [box.label for box in sample.boxes])
    ),
    "count_error": lambda sample, said: float(abs(len(said.boxes_px) - len(sample.boxes))),
}
"""Name of a metric -> its value of one completion."""


def sampled_groups(plan: StudyPlan, kit: Kit, samples: Sequence[Sample]) -> list[Group]:
    """Return N groups of completions, scored by every reward of every arm."""
    config = _config(plan)
    prompts = {number: kit.processor.encode(sample, for_generation=True) for number, sample in enumerate(samples)}
    answers = sample_completions(InPlaceEngine(kit.model), prompts, config.rollout, seed=0)
    every = {name: 1.0 for weights in plan.arms.values() for name in weights}
    return reward_completions(
        answers,
        RewardSet.from_config(Rewards(weights=every)),
        every,
        kit.tokenizer,
        kit.processor.text,
        config.rollout,
        config.grpo,
        step=plan.steps,
        max_steps=plan.steps,
    )


def agreement(plan: StudyPlan, groups: Sequence[Group]) -> dict[str, float]:
    """Say how similarly the first arm and each other one judge the same completions.

    Returns:
        Arm -> correlation of the advantages (1: the two teach the same).
    """
    own, *others = (_advantages(plan, groups, weights, normalise=False).flatten() for weights in plan.arms.values())
    return {arm: _correlation(own, other) for arm, other in zip(list(plan.arms)[1:], others, strict=True)}


def ranking(
    plan: StudyPlan, kit: Kit, groups: Sequence[Group], samples: Sequence[Sample]
) -> dict[str, dict[str, float]]:
    """Say how the advantages that an arm's runs learn from go with what is measured, within groups that ask where.

    Returns:
        Arm -> metric -> correlation of the advantages with the metric less its mean in the group.
    """
    asked = [(group, sample) for group, sample in zip(groups, samples, strict=True) if sample.task == "grounding"]
    measured = {name: torch.zeros(len(asked), len(asked[0][0].texts), dtype=torch.float64) for name in MEASURES}
    for row, (group, sample) in enumerate(asked):
        said = score_answers([sample] * len(group.texts), group.texts, kit.processor.text)
        for name, measure in MEASURES.items():
            measured[name][row] = torch.tensor([measure(sample, answer) for answer in said], dtype=torch.float64)
    normalise = _config(plan).grpo.normalise_components
    found: dict[str, dict[str, float]] = {}
    for arm, weights in plan.arms.items():
        learned = _advantages(plan, [group for group, _ in asked], weights, normalise=normalise).flatten()
        found[arm] = {
            name: _correlation(learned, (values - values.mean(1, keepdim=True)).flatten())
            for name, values in measured.items()
        }
    return found


def _config(plan: StudyPlan) -> RunConfig:
    return plan.run_config(next(iter(plan.arms)), 0, Path(), Path())


def _advantages(plan: StudyPlan, groups: Sequence[Group], weights: Mapping[str, float], *, normalise: bool) -> Tensor:
    """Return the advantages (N, G) that rewards of these weights give."""
    rewards_NG = torch.stack([combine(group.components, weights, normalise=normalise) for group in groups])
    return group_advantages(rewards_NG, _config(plan).grpo.advantage)


def _correlation(one: Tensor, other: Tensor) -> float:
    """Return the correlation of numbers whose means are 0 in every group."""
    return float(one @ other / (one.norm() * other.norm()).clamp(min=1e-12))
