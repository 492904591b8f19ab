"""The numbers of a reinforcement step: what was sampled, and what the update saw of it.

Shapes: L completion tokens.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from ..settings.run_config import Grpo
from ..training.distributed.world import World
from .groups import OVERLONG, Group, sampled_tokens
from .update import SUMS, Update


def step_figures(
    groups: Sequence[Group], discarded: Sequence[Group], update: Update, grpo: Grpo, world: World
) -> dict[str, float]:
    """Return the numbers of a step over all processes; every process calls this.

    Args:
        groups: groups that this process learned from.
        discarded: groups that were sampled, and replaced because nothing could be learned from them.
        update: the last pass over the batch.
        grpo: what is logged.
        world: the processes.

    Returns:
        Of all that was sampled: reward and the deviation within a group, share of groups without any, tokens, share of
        cut completions, `entropy`: an estimate, the mean of -logp over the sampled tokens (at the sampling
        temperature). Of the update: loss, shares and means over the tokens that were learned from.
    """
    sampled = [*groups, *discarded]
    generations = [generation for group in sampled for generation in group.generations]
    logps = [logp for generation in generations for logp in generation.logps if math.isfinite(logp)]
    own = {
        "groups": len(sampled),
        "discarded": len(discarded),
        "completions": len(generations),
        "reward": sum(float(group.rewards.sum()) for group in sampled),
        "reward_std": sum(float(group.rewards.std()) for group in sampled),
        "flat": sum(group.is_flat for group in sampled),
        "generated": sum(len(sampled_tokens(generation)) for generation in generations),
        "truncated": sum(not generation.finished for generation in generations),
        "prompt_tokens": sum(len(group.prompt.input_ids) for group in sampled),
        "known": len(logps),
        "surprise": -sum(logps),
        "overlong": sum(cost or 0.0 for group in sampled for cost in group.components.get(OVERLONG, ())),
    }
    row = torch.tensor([*own.values(), *update.sums.tolist()], dtype=torch.float64)
    total = dict(zip([*own, *SUMS], world.sum(row).tolist(), strict=True))

    def per(name: str, count: str) -> float:
        return total[name] / max(1.0, total[count])

    values = {
        "loss": update.loss,
        "reward": per("reward", "completions"),
        "reward_std": per("reward_std", "groups"),
        "zero_variance_ratio": per("flat", "groups"),
        "completion_tokens": per("generated", "completions"),
        "truncated_ratio": per("truncated", "completions"),
        "entropy": per("surprise", "known"),
        "clip_ratio": per("clipped", "tokens"),
        "sampler_gap": per("sampler_gap", "tokens"),
        "grad_norm": update.grad_norm,
        "tokens": total["generated"] + total["prompt_tokens"],
        "completions": total["completions"],
    }
    if update.lr is not None:
        values["lr"] = update.lr
    if grpo.beta > 0:
        values["kl"] = per("kl", "tokens")
    if grpo.importance != "none":
        values["importance_mean"] = per("importance", "tokens")
        values["importance_limited_ratio"] = per("importance_limited", "tokens")
    if grpo.overlong_tokens:
        values["reward/overlong"] = per("overlong", "completions")
    if grpo.resample_rounds:
        values["discarded_ratio"] = per("discarded", "groups")
    return values


def answer_figures(groups: Sequence[Group], world: World) -> dict[str, float]:
    """Return what the answers to grounding prompts look like; empty where there are none. Every process calls this.

    Args:
        groups: groups of this process; may be empty.
        world: the processes.

    Returns:
        `boxes` and `true_boxes`: mean number of usable boxes in an answer, and of true ones. `unreadable_ratio`: share
        of answers without readable boxes and without a statement that there are none.
    """
    own = np.zeros(4)
    for group in groups:
        truth = group.prompt.sample.truth_boxes()
        for parsed in group.parsed_boxes:
            if truth is not None and parsed is not None:
                own += (1, len(parsed.boxes), len(truth), parsed.grammar is None)
    answers, boxes, true_boxes, unreadable = np.sum(world.gather(own), axis=0).tolist()
    if not answers:
        return {}
    return {"boxes": boxes / answers, "true_boxes": true_boxes / answers, "unreadable_ratio": unreadable / answers}
