"""Rewards of reinforcement learning, by name.

Each is `reward(completions, **columns) -> list[float | None]` in TRL's shape: columns are lists with one value per
completion, of our own types or of the plain values that `plain_row` writes. Scores lie in [0, 1]; None means that the
reward does not apply to the sample. A reward is pure, scores each completion by itself, and gives any malformed
completion the value its docstring states.
"""

from collections.abc import Callable

from .answer import answer_reward
from .box import box_reward
from .factuality import factuality_reward
from .format import format_reward
from .label import label_reward
from .medmo_box import medmo_box_reward
from .plain import plain_row
from .presence import presence_reward

Reward = Callable[..., list[float | None]]

REWARDS: dict[str, Reward] = {
    "answer": answer_reward,
    "box": box_reward,
    "factuality": factuality_reward,
    "format": format_reward,
    "label": label_reward,
    "medmo_box": medmo_box_reward,
    "presence": presence_reward,
}

__all__ = [
    "REWARDS",
    "Reward",
    "answer_reward",
    "box_reward",
    "factuality_reward",
    "format_reward",
    "label_reward",
    "medmo_box_reward",
    "plain_row",
    "presence_reward",
]
