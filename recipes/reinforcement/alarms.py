"""Signs that a reward is being gamed, or that nothing is learned any more: logged once when they appear.

The mean of the last 10 steps is held against that of the first 20, the baseline:

- length: completions twice as long as at first or longer, or half as long or shorter;
- boxes: for a true box 1.5 boxes or more, and 1.25 times as many as at first; or 0.5 or fewer, and at most 0.8 times
  as many as at first;
- entropy: a fifth of that at first or less;
- flat groups: rewards all equal in 60 % of the groups or more, and in 20 points more than at first; or in 95 %;
- unreadable: 10 points more unreadable answers to grounding prompts than at first.

An alarm can be logged again after 10 steps without its sign. A step without a figure (no grounding prompt in it, say)
counts for the other alarms only.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..settings.run_config import Watching
from ..training.monitoring.log import RunLog

BASELINE, RECENT = 20, 10  # steps
CALM = 10  # steps without its sign after which an alarm can be logged again


@dataclass(frozen=True)
class Sign:
    """Condition of an alarm, with what it says.

    Attributes:
        value: function from the figures of a step to the number whose means are compared; NaN: the step has none.
        shows: function from recent and first mean to whether the sign is there.
        message: format string with {recent} and {first}, the two means.
        advice: possible meaning of the sign, and what to do.
    """

    value: Callable[[Mapping[str, float]], float]
    shows: Callable[[float, float], bool]
    message: str
    advice: str


def _figure(name: str) -> Callable[[Mapping[str, float]], float]:
    return lambda values: values.get(name, math.nan)


def _boxes_per_true_box(values: Mapping[str, float]) -> float:
    return values["boxes"] / values["true_boxes"] if values.get("true_boxes", 0.0) > 0 else math.nan


SIGNS: dict[str, Sign] = {
    "length": Sign(
        _figure("completion_tokens"),
        lambda recent, first: first > 0 and not first / 2 < recent < 2 * first,
        "a completion has {recent:.1f} tokens, at first it had {first:.1f}",
        "The reward may pay for length or brevity by itself. Read the rollout pages and truncated_ratio; "
        "grpo.overlong_tokens makes the longest answers cost",
    ),
    "boxes": Sign(
        _boxes_per_true_box,
        lambda recent, first: recent >= max(1.5, 1.25 * first) or (first > 0 and recent <= min(0.5, 0.8 * first)),
        "answers have {recent:.2f} boxes for a true one, at first {first:.2f}",
        "Spurious boxes may pay, or silence may: look at the boxes on the rollout pages; 'box' lets neither pay, so "
        "look for what else rewards them",
    ),
    "entropy": Sign(
        _figure("entropy"),
        lambda recent, first: first > 0 and recent <= first / 5,
        "the entropy of a token is {recent:.3g} nat, at first it was {first:.3g}",
        "The model says nearly the same each time and stops exploring: lower optim.lr, raise grpo.epsilon_high or "
        "rollout.temperature, or set grpo.beta",
    ),
    "flat groups": Sign(
        _figure("zero_variance_ratio"),
        lambda recent, first: recent >= 0.95 or recent >= max(0.6, first + 0.2),
        "in {recent:.0%} of the groups all completions earn the same, at first in {first:.0%}",
        "Little is left to learn from: prompts are too easy or too hard, or the reward is too coarse. "
        "grpo.resample_rounds draws others; more generations and a finer reward help too",
    ),
    "unreadable": Sign(
        _figure("unreadable_ratio"),
        lambda recent, first: recent >= first + 0.1,
        "{recent:.0%} of the answers to grounding prompts cannot be read, at first {first:.0%}",
        "The model leaves the box grammar: read the rollout pages, check model.profile, give 'format' a weight or more",
    ),
}


class Alarms:
    """Signs of trouble in the steps of a run.

    Args:
        watching: settings; with `alarms` off nothing is ever logged.
    """

    def __init__(self, watching: Watching) -> None:
        self.on = watching.alarms
        self._first: dict[str, list[float]] = {name: [] for name in SIGNS}
        self._recent: dict[str, list[float]] = {name: [] for name in SIGNS}
        self._calm: dict[str, int] = dict.fromkeys(SIGNS, CALM)

    def look(self, step: int, values: Mapping[str, float]) -> list[str]:
        """Take in a finished step and return the messages to log now.

        Args:
            step: 1-based number of the step, for the messages.
            values: figures of the step, the same on all processes.
        """
        if not self.on:
            return []
        messages = []
        for name, sign in SIGNS.items():
            value = sign.value(values)
            if not math.isfinite(value):
                continue
            if len(self._first[name]) < BASELINE:
                self._first[name].append(value)
                continue
            self._recent[name] = [*self._recent[name], value][-RECENT:]
            if len(self._recent[name]) < RECENT:
                continue
            recent, first = fmean(self._recent[name]), fmean(self._first[name])
            if not sign.shows(recent, first):
                self._calm[name] += 1
                continue
            if self._calm[name] >= CALM:
                seen = sign.message.format(recent=recent, first=first)
                messages.append(f"alarm ({name}) after step {step}: {seen}. {sign.advice}.")
            self._calm[name] = 0
        return messages

    def log(self, log: RunLog, step: int, values: Mapping[str, float]) -> None:
        """Look at a step, print the messages of its alarms, and record them as events.

        Args:
            log: log of the run.
            step: 1-based number of the step.
            values: figures of the step, the same on all processes.
        """
        for message in self.look(step, values):
            log.say(message)
            log.event("alarm", step=step, message=message)

    def state(self) -> dict[str, Any]:
        """Return JSON values for a checkpoint."""
        first, recent = ({name: list(kept[name]) for name in SIGNS} for kept in (self._first, self._recent))
        return {"first": first, "recent": recent, "calm": dict(self._calm)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._first = {name: list(state["first"].get(name, [])) for name in SIGNS}
        self._recent = {name: list(state["recent"].get(name, [])) for name in SIGNS}
        self._calm = {name: int(state["calm"].get(name, CALM)) for name in SIGNS}
