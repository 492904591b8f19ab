"""Sections that only reinforce reads: sampling, the loss of the policy, rewards, and the watch over a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from medmo_core.choices import Importance, Loss

from .section import Section, require

if TYPE_CHECKING:
    from medmo_core.losses.policy_objective import PolicyObjective

Advantage = Literal["group_std", "centred", "leave_one_out"]
"""Ways to compare a completion with its group; see `group_advantages`."""


@dataclass(frozen=True, kw_only=True)
class Rollout(Section):
    """Sampling of completions in reinforce."""

    num_generations: int = 8
    """Completions per prompt: the group whose mean reward is the baseline."""
    max_new_tokens: int = 128
    """Longest completion, in tokens."""
    temperature: float = 1.0
    """Sampling temperature; the trainer's log-probabilities use the same."""
    top_p: float = 1.0
    """Nucleus mass; 1 = no truncation. A run that trains needs 1: the trainer's log-probabilities are those of the
    whole distribution."""
    top_k: int = 0
    """Most likely tokens kept; 0 = all, which a run that trains needs too."""
    rows_per_pass: int = 64
    """Completions decoded at the same time by one process; fewer need less memory for keys and values."""

    def check(self) -> None:
        require(self.num_generations >= 2, "rollout.num_generations", self.num_generations, "2 or more")
        require(self.max_new_tokens >= 1, "rollout.max_new_tokens", self.max_new_tokens, "1 or more")
        require(self.temperature > 0, "rollout.temperature", self.temperature, "a number above 0 (groups must differ)")
        require(0 < self.top_p <= 1, "rollout.top_p", self.top_p, "a share above 0, at most 1")
        require(self.top_k >= 0, "rollout.top_k", self.top_k, "0 or more")
        require(self.rows_per_pass >= 1, "rollout.rows_per_pass", self.rows_per_pass, "1 or more")


@dataclass(frozen=True, kw_only=True)
class Grpo(Section):
    """Loss of the policy, and advantages, in reinforce."""

    loss: Loss = "dapo"
    """Mean of the completions' means (grpo), mean over all tokens of the step (dapo), sum over a constant (dr_grpo),
    one ratio a completion (gspo), or a clipped weight on every token's log-probability (cispo)."""
    advantage: Advantage = "group_std"
    """Reward less the group's mean, over its standard deviation (group_std) or as it is (centred), or less the mean of
    the group's others (leave_one_out)."""
    normalise_components: bool = False
    """Take every reward in standard deviations from its group's mean before they are weighed together."""
    epsilon_low: float = 0.2
    """How far below 1 the ratio of new to sampling probability may fall before it is clipped; unused by cispo."""
    epsilon_high: float = 0.2
    """How far above 1 it may rise; larger than epsilon_low is DAPO's clip-higher. gspo's paper has 4e-4 (and 3e-4)."""
    beta: float = 0.0
    """Weight of the KL term to the starting policy; 0 keeps no reference model."""
    num_updates: int = 1
    """Optimiser steps per sampled batch, each over all of it."""
    mask_truncated: bool = False
    """Leave completions that hit max_new_tokens out of the loss."""
    overlong_tokens: int = 0
    """Each of the last so many tokens before max_new_tokens costs reward, linearly up to -1 (DAPO); 0 = none does."""
    resample_rounds: int = 0
    """Draw new prompts in place of groups whose rewards are all equal, at most so many times a step; 0 = never."""
    importance: Importance = "none"
    """Weigh tokens by what the trainer's policy gives them over what the sampler gave: per token or for the whole
    completion; a weight above importance_cap is lowered to it (truncate) or its tokens learn nothing (mask)."""
    importance_cap: float = 2.0
    """Largest such weight."""

    def check(self) -> None:
        require(0 <= self.epsilon_low < 1, "grpo.epsilon_low", self.epsilon_low, "a number in [0, 1)")
        require(self.epsilon_high >= 0, "grpo.epsilon_high", self.epsilon_high, "0 or more")
        require(self.beta >= 0, "grpo.beta", self.beta, "0 or more")
        require(self.num_updates >= 1, "grpo.num_updates", self.num_updates, "1 or more")
        require(self.overlong_tokens >= 0, "grpo.overlong_tokens", self.overlong_tokens, "0 or more")
        require(self.resample_rounds >= 0, "grpo.resample_rounds", self.resample_rounds, "0 or more")
        require(self.importance_cap >= 1, "grpo.importance_cap", self.importance_cap, "1 or more")

    def objective(self) -> "PolicyObjective":
        """Return the loss of the sampled tokens with its settings."""
        from medmo_core.losses.policy_objective import PolicyObjective  # brings PyTorch, which settings do not wait for

        return PolicyObjective(
            loss=self.loss,
            epsilon_low=self.epsilon_low,
            epsilon_high=self.epsilon_high,
            beta=self.beta,
            importance=self.importance,
            importance_cap=self.importance_cap,
        )


@dataclass(frozen=True, kw_only=True)
class Rewards(Section):
    """Rewards of reinforce."""

    weights: Mapping[str, float] = field(default_factory=dict)
    """Reward -> weight: a name in `medmo_core.rewards.REWARDS`, "package.module:function" or "path/to/file.py:function"
    in TRL's shape. The reward is the weighted mean over those that apply to a sample."""
    timeout_s: float = 60.0
    """Longest time of one call of a reward."""

    def check(self) -> None:
        for name, weight in self.weights.items():
            require(0 <= weight <= 1e6, f"rewards.weights.{name}", weight, "a weight from 0 to 1e6")
        require(self.timeout_s > 0, "rewards.timeout_s", self.timeout_s, "a time above 0")


@dataclass(frozen=True, kw_only=True)
class Watching(Section):
    """Pages of rollouts, and alarms, in reinforce."""

    page_every: int = 0
    """Steps between pages of the rollout browser (rollouts/step-N.html); 0 = none."""
    page_prompts: int = 8
    """Prompts on such a page."""
    alarms: bool = True
    """Warn of signs that the reward is being gamed: lengths, box counts, entropy, flat groups, unreadable answers."""

    def check(self) -> None:
        require(self.page_every >= 0, "watching.page_every", self.page_every, "0 or more")
        require(self.page_prompts >= 1, "watching.page_prompts", self.page_prompts, "1 or more")
