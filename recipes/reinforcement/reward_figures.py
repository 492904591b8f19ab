"""Figures of a step's rewards over all processes.

Figures of a reward, by its short name ("box"; "brief" for "my_rewards.py:brief"): `reward/box` is the mean over the
completions that it applies to, `reward/box/std`, `/min` and `/max` their spread, `reward/box/applies_ratio` their share
of all completions, `reward/box/s` the seconds that it took in the slowest process. `logged/words` is the mean of what
rewards gave to `log_metric` as "words".
"""

from collections.abc import Sequence

import numpy as np

from ..training.distributed.world import World
from ..training.monitoring.log import RunLog
from .groups import Group
from .reward_calls.reward_set import RewardSet

NUM_BINS = 20


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return reward -> name in figures: the function's, with its file's or module's where two would be the same."""
    short = {name: name.rpartition(":")[2] for name in names}
    taken = list(short.values())
    return {name: s if taken.count(s) == 1 else name.replace("/", ".").replace(":", ".") for name, s in short.items()}


def gathered(groups: Sequence[Group], rewards: RewardSet, world: World) -> dict[str, list[float | None]]:
    """Return component -> its values for all completions of all processes; every process calls this.

    Components beside the rewards, such as a length penalty, come last.
    """
    own: dict[str, list[float | None]] = {name: [] for name in rewards.names}
    for group in groups:
        for name, values in group.components.items():
            own.setdefault(name, []).extend(values)
    everyone = world.gather(own)
    names = dict.fromkeys(name for part in everyone for name in part)
    return {name: [value for part in everyone for value in part.get(name, [])] for name in names}


def reward_figures(groups: Sequence[Group], world: World, rewards: RewardSet) -> dict[str, float]:
    """Return the figures of every reward of a step; every process calls this.

    Args:
        groups: groups of this process; may be empty.
        world: the processes.
        rewards: rewards that scored the groups.
    """
    values: dict[str, float] = {}
    seconds, metrics = zip(*world.gather((dict(rewards.seconds), dict(rewards.metrics))), strict=True)
    components = gathered(groups, rewards, world)
    for name, short in short_names(list(components)).items():
        known = np.array([value for value in components[name] if value is not None])
        values[f"reward/{short}/applies_ratio"] = len(known) / max(1, len(components[name]))
        if name in rewards.names:
            values[f"reward/{short}/s"] = max(part.get(name, 0.0) for part in seconds)
        if len(known):
            values |= {
                f"reward/{short}": float(known.mean()),
                f"reward/{short}/std": float(known.std()),
                f"reward/{short}/min": float(known.min()),
                f"reward/{short}/max": float(known.max()),
            }
    for name in sorted({name for part in metrics for name in part}):
        values[f"logged/{name}"] = float(np.mean([value for part in metrics for value in part.get(name, [])]))
    return values


def log_histograms(log: RunLog, step: int, groups: Sequence[Group], world: World, rewards: RewardSet) -> None:
    """Record how often each reward took which value, as an event per reward; every process calls this.

    Args:
        log: log of the run.
        step: 1-based.
        groups: groups of this process; may be empty.
        world: the processes.
        rewards: rewards that scored the groups.
    """
    components = gathered(groups, rewards, world)
    for name, short in short_names(list(components)).items():
        known = [value for value in components[name] if value is not None]
        if known:
            counts, edges = np.histogram(known, bins=NUM_BINS)  # between the least and the greatest value
            low, high = float(edges[0]), float(edges[-1])
            log.event("reward_histogram", step=step, reward=short, low=low, high=high, counts=counts.tolist())
