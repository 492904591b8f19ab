"""Every reward keeps its promises: its examples, range, length, independence of order and company, any input."""

import importlib
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmo_core import rewards
from medmo_core.rewards import REWARDS, plain_row

EXAMPLES = {name: importlib.import_module(f"medmo_core.rewards.{name}").EXAMPLES for name in REWARDS}
CASES = [pytest.param(name, e, id=f"{name}: {e.about}") for name, examples in EXAMPLES.items() for e in examples]


def columns_of(examples: list[Any]) -> dict[str, list[Any]]:
    return {key: [e.columns[key] for e in examples] for key in examples[0].columns}


def score(name: str, examples: list[Any]) -> list[float | None]:
    return REWARDS[name]([e.completion for e in examples], **columns_of(examples))


@pytest.mark.parametrize(("name", "example"), CASES)
def test_example(name: str, example: Any) -> None:
    (value,) = score(name, [example])
    if example.score is None:
        assert value is None
    else:
        assert value == pytest.approx(example.score, abs=1e-6)


@pytest.mark.parametrize("name", REWARDS)
def test_a_completion_is_scored_by_itself(name: str) -> None:
    """In any order, and beside any other completions, the score is the same."""
    examples = list(EXAMPLES[name])
    alone = [score(name, [e])[0] for e in examples]
    order = list(range(len(examples)))
    random.Random(0).shuffle(order)
    together = score(name, [examples[i] for i in order])
    assert together == [pytest.approx(alone[i]) if alone[i] is not None else None for i in order]


@pytest.mark.parametrize("name", REWARDS)
def test_the_table_and_the_module_hold_the_same_function(name: str) -> None:
    """A config may name a reward by its key or as `medmo_core.rewards:NAME_reward`; both read plain columns."""
    function = getattr(rewards, f"{name}_reward")
    assert REWARDS[name] is function
    assert f"{name}_reward" in rewards.__all__
    example = next(e for e in EXAMPLES[name] if e.score == 1.0)
    columns = {key: [value] for key, value in plain_row(example.columns).items()}
    assert function([example.completion], **columns) == [pytest.approx(1.0)]


@pytest.mark.parametrize("name", REWARDS)
def test_nothing_to_score(name: str) -> None:
    assert REWARDS[name]([], **{key: [] for key in EXAMPLES[name][0].columns}) == []


@pytest.mark.parametrize("name", REWARDS)
def test_unknown_columns_are_ignored_and_chats_are_read(name: str) -> None:
    example = next(e for e in EXAMPLES[name] if e.score == 1.0)
    chat = [{"role": "assistant", "content": example.completion}]
    values = REWARDS[name]([chat], **columns_of([example]), prompts=["?"], completion_ids=[[1]])
    assert values == [pytest.approx(1.0)]


PIECES = st.sampled_from(
    ["[", "]", "{", "}", '"bbox_2d"', ": ", ",", '"label"', '"liver"', "100", "-5", "1e999", "nan", "<box>", "</box>",
     "<think>", "</answer>", "yes", "no ", "left ", "kidney", "is not visible", ".", "\n", "\x00", "\ufffd"]
)  # fmt: skip
TEXTS = st.one_of(st.text(max_size=40), st.lists(PIECES, max_size=25).map("".join))
ODD = st.one_of(TEXTS, st.none(), st.integers(), st.lists(st.integers(), max_size=2), st.just([{"role": "assistant"}]))


@pytest.mark.parametrize("name", REWARDS)
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_any_completion_has_a_value_in_range(name: str, data: Any) -> None:
    example = data.draw(st.sampled_from(EXAMPLES[name]))
    (value,) = REWARDS[name]([data.draw(ODD)], **columns_of([example]))
    assert (value is None) == (example.score is None)
    if value is not None:
        assert math.isfinite(value)
        assert 0 <= value <= 1
