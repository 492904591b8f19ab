"""A reward of your own, for short answers; a run takes it by its file and a weight.

    medmo train reinforce --config tiny_reinforce rewards.weights.examples/own_reward.py:short_answer=0.2

A reward takes the completions and any columns of the samples, by keyword, and returns one number per completion, or
None where it does not apply. Research use only.
"""

from collections.abc import Sequence
from typing import Any

from medmo_core.metrics.text import completion_text

ENOUGH_WORDS = 30


def short_answer(completions: Sequence[Any], *, task: Sequence[str], **_: Any) -> list[float | None]:
    """Reward answers to questions: 1 up to 30 words, falling to 0 at 60; other tasks are left alone."""
    return [
        _brevity(completion_text(said)) if kind == "vqa" else None for said, kind in zip(completions, task, strict=True)
    ]


def _brevity(text: str) -> float:
    return min(1.0, max(0.0, 2.0 - len(text.split()) / ENOUGH_WORDS))


if __name__ == "__main__":
    print(short_answer(["yes", "word " * 45, "word " * 90], task=["vqa"] * 3))  # [1.0, 0.5, 0.0]
