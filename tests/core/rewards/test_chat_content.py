"""Completions as chats score as their text does, whatever shape the content has; rewards travel by pickle."""

import importlib
import pickle
from typing import Any

import pytest

from medmo_core.metrics.text import completion_text
from medmo_core.rewards import REWARDS

PART = {"type": "text", "text": "liver"}


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("liver", "liver"),
        ([{"role": "assistant", "content": "liver"}], "liver"),
        ({"role": "assistant", "content": "liver"}, "liver"),
        ([{"role": "assistant", "content": [PART]}], "liver"),
        ([{"role": "assistant", "content": [PART, {"type": "image"}, {"type": "text", "text": "s"}]}], "livers"),
        ([{"role": "assistant", "content": ({"type": "output_text", "text": "liver"},)}], "liver"),
        ([{"role": "assistant", "content": ["li", "ver"]}], ""),
        (["liver"], ""),
        ([PART], "liver"),
        ([{"role": "assistant", "content": "x"}, {"role": "tool", "content": "y"}, {"content": [PART]}], "liver"),
        ([{"role": "assistant", "content": None, "tool_calls": []}], ""),
        ([{"role": "assistant", "content": [{"type": "text", "text": None}, {"type": "image"}, 5]}], ""),
        ([{"role": "assistant"}], ""),
        ([], ""),
        (None, ""),
        (7, ""),
        (b"liver", ""),
    ],
)
def test_the_text_of_a_completion(completion: Any, text: str) -> None:
    assert completion_text(completion) == text


@pytest.mark.parametrize("name", REWARDS)
def test_parts_score_as_their_text(name: str) -> None:
    reward = REWARDS[name]
    for example in importlib.import_module(reward.__module__).EXAMPLES:
        if not isinstance(example.completion, str):
            continue
        half = len(example.completion) // 2
        parts = [{"type": "text", "text": text} for text in (example.completion[:half], example.completion[half:])]
        columns = {key: [value] for key, value in example.columns.items()}
        assert reward([[{"role": "assistant", "content": parts}]], **columns) == pytest.approx([example.score])


@pytest.mark.parametrize("name", REWARDS)
def test_a_reward_is_the_same_after_pickling(name: str) -> None:
    assert pickle.loads(pickle.dumps(REWARDS[name])) is REWARDS[name]
